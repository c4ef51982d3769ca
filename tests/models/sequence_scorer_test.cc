// SPDX-License-Identifier: Apache-2.0

#include "models/sequence_scorer.h"

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "models/language_model.h"
#include "ops/cross_entropy.h"
#include "runtime/philox.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

constexpr int64_t kBatch = 3;
constexpr int64_t kSeqLen = 24;

ModelConfig Config(const std::string& mixer) {
  ModelConfig config;
  config.mixer = mixer;
  config.num_layers =
      5;  // odd: the last block's result is in the first's place
  config.hidden_size = 32;
  config.num_heads = 2;
  config.ffn_hidden_size = 64;
  config.vocab_size = 128;
  config.valid_vocab = 101;
  config.seq_len = kSeqLen;
  config.document_mask = true;
  return config;
}

std::vector<int32_t> RandomIds(uint64_t seed, size_t count) {
  const Philox random(seed, "ids");
  std::vector<int32_t> ids(count);
  for (size_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>(random.Bits(i) % 101);
  }
  return ids;
}

class SequenceScorerTest : public ::testing::TestWithParam<std::string> {
 protected:
  SequenceScorerTest() {
    auto model = LanguageModel::Create(Config(GetParam()));
    CUBIT_CHECK_OK(model);
    model_ = *std::move(model);
    CUBIT_CHECK_OK(model_->parameters().Allocate(false));
    CUBIT_CHECK_OK(model_->parameters().Initialize(5, stream_));
  }

  // Losses of all positions by the forward of training.
  std::vector<float> TrainingLosses(const ScoringBatch& batch,
                                    const std::vector<int32_t>& targets) {
    Arena measure = Arena::Measuring();
    const auto lay = [&](Arena& arena) {
      activations_ = model_->AllocateActivations(kBatch, kSeqLen, arena);
      scratch_ = model_->AllocateScratch(kBatch, kSeqLen, arena);
    };
    lay(measure);
    auto arena =
        Arena::Create(measure.used_bytes(), MemoryCategory::kActivations);
    CUBIT_CHECK_OK(arena);
    lay(*arena);
    model_->InitializeScratch(&scratch_, stream_);
    const auto copy = [&](const std::vector<int32_t>& ids, const Tensor& to) {
      CopyToDevice(to.raw(), ids.data(), to.size_bytes(), stream_);
    };
    copy(batch.inputs, activations_.inputs);
    copy(targets, activations_.targets);
    if (batch.segment_ids.empty()) {
      activations_.segment_ids = Tensor();
    } else {
      copy(batch.segment_ids, activations_.segment_ids);
    }
    model_->Forward(&activations_, &scratch_, stream_);
    std::vector<float> losses(targets.size());
    CopyToHost(losses.data(), activations_.losses.raw(),
               activations_.losses.size_bytes(), stream_);
    stream_.Synchronize();
    return losses;
  }

  // All positions, in an order of its own.
  static ScoringBatch EveryPosition(const std::vector<int32_t>& targets) {
    ScoringBatch batch;
    batch.batch_size = kBatch;
    batch.seq_len = kSeqLen;
    batch.inputs = RandomIds(1, kBatch * kSeqLen);
    for (size_t i = 0; i < targets.size(); ++i) {
      const size_t position = (i * 5 + 3) % targets.size();
      batch.positions.push_back(static_cast<int32_t>(position));
      batch.targets.push_back(targets[position]);
    }
    return batch;
  }

  void ExpectTrainingLosses(const ScoringBatch& batch,
                            const std::vector<int32_t>& targets) {
    SequenceScorer scorer(model_.get(), &stream_);
    const auto losses = scorer.Score(batch);
    ASSERT_TRUE(losses.ok()) << losses.status();
    const std::vector<float> all = TrainingLosses(batch, targets);
    std::vector<float> want;
    for (int32_t position : batch.positions) {
      want.push_back(all[static_cast<size_t>(position)]);
    }
    EXPECT_TRUE(testing::IsClose(testing::ToDouble(*losses),
                                 testing::ToDouble(want), 1e-6));
  }

  Stream stream_;
  std::unique_ptr<LanguageModel> model_;
  Activations activations_;
  ModelScratch scratch_;
};

TEST_P(SequenceScorerTest, GivesTheLossesOfTheTrainingForward) {
  std::vector<int32_t> targets = RandomIds(2, kBatch * kSeqLen);
  targets[7] = kIgnoredTarget;
  ExpectTrainingLosses(EveryPosition(targets), targets);
}

TEST_P(SequenceScorerTest, KeepsDocumentsApart) {
  const std::vector<int32_t> targets = RandomIds(2, kBatch * kSeqLen);
  ScoringBatch batch = EveryPosition(targets);
  for (int64_t i = 0; i < kBatch * kSeqLen; ++i) {
    batch.segment_ids.push_back(static_cast<int32_t>(i % kSeqLen / 10));
  }
  ExpectTrainingLosses(batch, targets);
}

// A sequence scores the same alone at its own length and filled up beside
// others, and after batches of other shapes.
TEST_P(SequenceScorerTest, PaddingAndNeighboursDoNotMatter) {
  const int64_t length = 9;
  const std::vector<int32_t> ids = RandomIds(3, length);
  ScoringBatch alone;
  alone.batch_size = 1;
  alone.seq_len = length;
  alone.inputs = ids;
  alone.positions = {6, 8};
  alone.targets = {11, 12};
  ScoringBatch among = EveryPosition(RandomIds(2, kBatch * kSeqLen));
  for (size_t i = 0; i < ids.size(); ++i) among.inputs[kSeqLen + i] = ids[i];
  among.positions = {kSeqLen + 6, kSeqLen + 8, 0};
  among.targets = {11, 12, 13};

  SequenceScorer scorer(model_.get(), &stream_);
  const auto first = scorer.Score(alone);
  auto second = scorer.Score(among);
  const auto third = scorer.Score(alone);
  ASSERT_TRUE(first.ok() && second.ok() && third.ok());
  EXPECT_EQ(*first, *third);
  second->pop_back();
  EXPECT_TRUE(testing::IsClose(testing::ToDouble(*second),
                               testing::ToDouble(*first), 2e-6));
}

// Several requests may share a sequence: more questions than positions.
TEST_P(SequenceScorerTest, AnswersManyQuestionsAboutOnePosition) {
  ScoringBatch batch;
  batch.batch_size = 1;
  batch.seq_len = 4;
  batch.inputs = {1, 2, 3, 4};
  for (int32_t target = 0; target < 101; ++target) {
    batch.positions.push_back(2);
    batch.targets.push_back(target);
  }
  SequenceScorer scorer(model_.get(), &stream_);
  const auto losses = scorer.Score(batch);
  ASSERT_TRUE(losses.ok());
  double sum = 0;
  for (float loss : *losses) sum += std::exp(-static_cast<double>(loss));
  EXPECT_NEAR(sum, 1, 1e-5);
}

TEST_P(SequenceScorerTest, TakesLessMemoryThanTraining) {
  Arena training = Arena::Measuring();
  model_->AllocateActivations(kBatch, kSeqLen, training);
  model_->AllocateScratch(kBatch, kSeqLen, training);
  SequenceScorer scorer(model_.get(), &stream_);
  EXPECT_LT(scorer.BytesFor(kBatch, kSeqLen), training.used_bytes() / 2);
}

INSTANTIATE_TEST_SUITE_P(Mixers, SequenceScorerTest,
                         ::testing::Values("cubit", "softmax", "deltaformer"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace cubit
