// SPDX-License-Identifier: Apache-2.0
//
// Every token exactly once an epoch, whatever ranks read it and however often
// the run is stopped: checked with tokens that are all different.

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "data/batch_loader.h"
#include "tests/data/shard_files.h"

namespace cubit {
namespace {

constexpr int64_t kSeqLen = 8;
constexpr int64_t kGlobalBatch = 12;
constexpr int64_t kVocabSize = 200000;  // uint32 in the file

// Part of a run: this many steps on this many ranks.
struct Stretch {
  int64_t steps;
  int64_t ranks;
  int64_t micro_batch_size;
};

// Documents of ids from `first` on, none twice.
std::vector<std::vector<int32_t>> Distinct(int32_t first, int64_t documents) {
  std::vector<std::vector<int32_t>> all(static_cast<size_t>(documents));
  for (size_t d = 0; d < all.size(); ++d) {
    all[d].resize(5 + d * 7 % 40);
    std::iota(all[d].begin(), all[d].end(), first);
    first += static_cast<int32_t>(all[d].size());
  }
  return all;
}

class CoverageTest : public testing::Test {
 protected:
  void SetUp() override {
    a_ = ScratchFolder("a");
    b_ = ScratchFolder("b");
    const auto first = Distinct(0, 90);
    WriteDataset(a_, kVocabSize,
                 {{"train", {first.begin(), first.begin() + 41}},
                  {"train", {first.begin() + 41, first.end()}}});
    WriteDataset(b_, kVocabSize, {{"train", Distinct(100000, 50)}});
  }

  std::unique_ptr<BlendedDataset> Open(const std::vector<double>& weights) {
    const std::vector<std::string> folders =
        weights.empty() ? std::vector<std::string>{a_}
                        : std::vector<std::string>{a_, b_};
    auto dataset = BlendedDataset::Open(folders, weights, "train", kSeqLen);
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    return *std::move(dataset);
  }

  // What one rank reads of a stretch that begins at position `begin`.
  void RunRank(const Stretch& stretch, int64_t rank, int64_t begin,
               const std::vector<double>& weights,
               const std::vector<PositionRange>& skipped,
               std::vector<std::vector<int32_t>>* samples) {
    const auto dataset = Open(weights);
    BatchLoaderOptions options;
    options.micro_batch_size = stretch.micro_batch_size;
    options.seq_len = kSeqLen;
    options.shuffle_seed = 77;
    options.skipped = skipped;
    options.stride = stretch.micro_batch_size * stretch.ranks;
    options.first_position = begin + rank * stretch.micro_batch_size;
    BatchLoader loader(dataset.get(), options);
    const int64_t batches = stretch.steps * kGlobalBatch / options.stride;
    for (int64_t n = 0; n < batches; ++n) {
      const auto batch = loader.Next();
      ASSERT_TRUE(batch.ok()) << batch.status();
      const int64_t at = options.first_position + n * options.stride;
      for (int64_t row = 0; row < stretch.micro_batch_size; ++row) {
        const auto targets = batch->targets.begin() + row * kSeqLen;
        (*samples)[static_cast<size_t>(at + row)].assign(targets,
                                                         targets + kSeqLen);
      }
    }
  }

  // The samples of a run by their place in the order of samples, each by its
  // targets. Every rank of every stretch has a loader and files of its own.
  std::vector<std::vector<int32_t>> Run(
      const std::vector<Stretch>& stretches, const std::vector<double>& weights,
      const std::vector<PositionRange>& skipped = {}) {
    std::vector<std::vector<int32_t>> samples;
    for (const Stretch& stretch : stretches) {
      const size_t begin = samples.size();
      samples.resize(begin + static_cast<size_t>(stretch.steps * kGlobalBatch));
      for (int64_t rank = 0; rank < stretch.ranks; ++rank) {
        RunRank(stretch, rank, static_cast<int64_t>(begin), weights, skipped,
                &samples);
      }
    }
    return samples;
  }

  // Expects that samples [begin, end) hold every id of `stream` but the first
  // once, but for the end of text and a rest that fills no sample.
  static void ExpectOneEpoch(const std::vector<std::vector<int32_t>>& samples,
                             size_t begin, size_t end,
                             const std::vector<int32_t>& stream) {
    std::map<int32_t, int> seen;
    for (size_t i = begin; i < end; ++i) {
      for (const int32_t id : samples[i]) ++seen[id];
    }
    const int64_t used = static_cast<int64_t>(end - begin) * kSeqLen;
    ASSERT_LT(static_cast<int64_t>(stream.size()) - 1 - used, kSeqLen);
    std::map<int32_t, int> wanted;
    for (int64_t i = 1; i <= used; ++i) {
      ++wanted[stream[static_cast<size_t>(i)]];
    }
    EXPECT_EQ(seen, wanted);
  }

  std::string a_;
  std::string b_;
};

TEST_F(CoverageTest, EveryTokenOnceAnEpochOverChangesOfTheWorldSize) {
  const std::vector<int32_t> stream =
      TokenStream(Distinct(0, 90), kVocabSize - 1);
  const size_t epoch = (stream.size() - 1) / kSeqLen;
  // An epoch ends inside a step, so that steps mix epochs.
  ASSERT_NE(epoch % kGlobalBatch, 0u);
  const int64_t steps = static_cast<int64_t>(3 * epoch / kGlobalBatch) + 1;
  const auto samples = Run({{7, 1, 4},
                            {9, 2, 3},
                            {11, 4, 1},
                            {5, 3, 2},
                            {4, 6, 2},
                            {3, 12, 1},
                            {steps - 39, 2, 6}},
                           {});
  ASSERT_GE(samples.size(), 3 * epoch);
  for (size_t e = 0; e < 3; ++e) {
    ExpectOneEpoch(samples, e * epoch, (e + 1) * epoch, stream);
  }
  // In an order of its own.
  EXPECT_NE(samples[0], samples[epoch]);
  EXPECT_NE(samples[epoch], samples[2 * epoch]);
  // And the same samples as one rank gets that is never stopped.
  EXPECT_EQ(samples, Run({{steps, 1, 12}}, {}));
}

TEST_F(CoverageTest, SkippedAndUsedDataCoverAnEpochTogether) {
  const std::vector<PositionRange> skipped = {{24, 60}, {96, 120}};
  const std::vector<int32_t> stream =
      TokenStream(Distinct(0, 90), kVocabSize - 1);
  const size_t epoch = (stream.size() - 1) / kSeqLen;
  const int64_t steps = static_cast<int64_t>(epoch / kGlobalBatch) + 1;
  const auto all = Run({{steps, 1, 12}}, {});
  const auto kept = Run({{2, 2, 3}, {3, 1, 6}, {steps - 5, 3, 4}}, {}, skipped);
  std::vector<std::vector<int32_t>> joined(kept.begin(), kept.begin() + 24);
  joined.insert(joined.end(), all.begin() + 24, all.begin() + 60);
  joined.insert(joined.end(), kept.begin() + 24, kept.begin() + 60);
  joined.insert(joined.end(), all.begin() + 96, all.begin() + 120);
  joined.insert(joined.end(), kept.begin() + 60, kept.end());
  ASSERT_GE(joined.size(), epoch);
  joined.resize(all.size());
  EXPECT_EQ(joined, all);
  ExpectOneEpoch(joined, 0, epoch, stream);
}

TEST_F(CoverageTest, EachSetOfABlendHasEpochsOfItsOwn) {
  const auto dataset = Open({1, 2});
  const int64_t steps = 60;
  const auto samples =
      Run({{20, 1, 12}, {25, 2, 2}, {steps - 45, 6, 1}}, {1, 2});
  std::vector<std::vector<std::vector<int32_t>>> sets(2);
  for (const auto& sample : samples) {
    // An end of text, which both have, may be anywhere but alone.
    const int32_t id = *std::min_element(sample.begin(), sample.end());
    sets[id < 100000 ? 0 : 1].push_back(sample);
  }
  const auto position = static_cast<int64_t>(samples.size());
  EXPECT_NEAR(static_cast<double>(sets[0].size()),
              static_cast<double>(position) / 3, 1);
  const std::vector<int32_t> streams[] = {
      TokenStream(Distinct(0, 90), kVocabSize - 1),
      TokenStream(Distinct(100000, 50), kVocabSize - 1)};
  for (size_t set = 0; set < 2; ++set) {
    const size_t epoch = (streams[set].size() - 1) / kSeqLen;
    EXPECT_NEAR(
        dataset->Epochs(position)[set],
        static_cast<double>(sets[set].size()) / static_cast<double>(epoch),
        1e-12);
    for (size_t e = 0; (e + 1) * epoch <= sets[set].size(); ++e) {
      ExpectOneEpoch(sets[set], e * epoch, (e + 1) * epoch, streams[set]);
    }
  }
  // The second was gone through at least twice.
  EXPECT_GT(dataset->Epochs(position)[1], 2);
}

TEST_F(CoverageTest, ABlendRefusesFoldersOfOtherTokenizers) {
  const std::string other = ScratchFolder("other");
  WriteDataset(other, 257, {{"train", RandomDocuments(1, 30, 30, 257)}});
  const auto dataset =
      BlendedDataset::Open({a_, other}, {1, 1}, "train", kSeqLen);
  ASSERT_FALSE(dataset.ok());
  EXPECT_NE(dataset.status().message().find(other), std::string::npos);
}

}  // namespace
}  // namespace cubit
