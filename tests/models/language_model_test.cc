// SPDX-License-Identifier: Apache-2.0

#include "models/language_model.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "models/decoder.h"
#include "ops/cross_entropy.h"
#include "runtime/philox.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

ModelConfig SmallConfig(const std::string& mixer) {
  ModelConfig config;
  config.mixer = mixer;
  config.num_layers = 2;
  config.hidden_size = 32;
  config.num_heads = 2;
  config.ffn_hidden_size = 64;
  config.vocab_size = 64;
  config.valid_vocab = 61;
  config.seq_len = 40;
  return config;
}

// A model with memory for one micro-batch of random tokens.
class Fixture {
 public:
  Fixture(const ModelConfig& config, int64_t batch,
          Recompute recompute = Recompute::kNone)
      : config_(config) {
    auto model = LanguageModel::Create(config);
    CUBIT_CHECK_OK(model);
    model_ = *std::move(model);
    CUBIT_CHECK_OK(model_->parameters().Allocate(true));
    CUBIT_CHECK_OK(model_->parameters().Initialize(1, stream_));
    Arena measure = Arena::Measuring();
    model_->AllocateActivations(batch, config.seq_len, measure, recompute);
    model_->AllocateScratch(batch, config.seq_len, measure);
    auto arena =
        Arena::Create(measure.used_bytes(), MemoryCategory::kActivations);
    CUBIT_CHECK_OK(arena);
    arena_ = std::make_unique<Arena>(*std::move(arena));
    activations_ =
        model_->AllocateActivations(batch, config.seq_len, *arena_, recompute);
    scratch_ = model_->AllocateScratch(batch, config.seq_len, *arena_);
    EXPECT_EQ(arena_->used_bytes(), measure.used_bytes());
    model_->InitializeScratch(&scratch_, stream_);
    const Philox random(2, "tokens");
    for (int64_t i = 0; i < activations_.inputs.num_elements(); ++i) {
      const auto next = [&](uint64_t n) {
        return static_cast<int32_t>(random.Bits(n) %
                                    static_cast<uint64_t>(config.valid_vocab));
      };
      activations_.inputs.data<int32_t>()[i] = next(2 * i);
      activations_.targets.data<int32_t>()[i] = next(2 * i + 1);
      if (!activations_.segment_ids.empty()) {
        activations_.segment_ids.data<int32_t>()[i] =
            static_cast<int32_t>(i % config.seq_len / 17);
      }
    }
  }

  double Loss() {
    model_->Forward(&activations_, &scratch_, stream_);
    return SumLosses();
  }
  double LossAndGradients() {
    const Tensor gradients = model_->parameters().flat_gradients();
    SetZero(gradients.raw(), gradients.size_bytes(), stream_);
    model_->ForwardBackward(1.0f, &activations_, &scratch_, stream_);
    return SumLosses();
  }
  int64_t arena_bytes() const { return arena_->used_bytes(); }
  std::vector<float> Gradients() const {
    const Tensor flat = model_->parameters().flat_gradients();
    return std::vector<float>(flat.data<float>(),
                              flat.data<float>() + flat.num_elements());
  }
  LanguageModel& model() { return *model_; }
  Activations& activations() { return activations_; }
  ModelScratch& scratch() { return scratch_; }
  Stream& stream() { return stream_; }

 private:
  double SumLosses() {
    double sum = 0;
    for (int64_t i = 0; i < activations_.losses.num_elements(); ++i) {
      sum += activations_.losses.data<float>()[i];
    }
    return sum;
  }

  ModelConfig config_;
  Stream stream_;
  std::unique_ptr<LanguageModel> model_;
  std::unique_ptr<Arena> arena_;
  Activations activations_;
  ModelScratch scratch_;
};

std::vector<ModelConfig> Configs() {
  std::vector<ModelConfig> list;
  for (const char* mixer : {"cubit", "softmax", "deltaformer"}) {
    list.push_back(SmallConfig(mixer));
  }
  ModelConfig other = SmallConfig("cubit");
  other.norm = NormKind::kRmsNorm;
  other.mlp = MlpKind::kSwiGlu;
  other.tied_embeddings = true;
  other.bias = false;
  other.z_loss = 1e-3;
  other.document_mask = true;
  list.push_back(other);
  return list;
}

class LanguageModelTest : public ::testing::TestWithParam<ModelConfig> {};

TEST_P(LanguageModelTest, StartsAtTheLossOfAUniformGuess) {
  Fixture fixture(GetParam(), 2);
  const double loss =
      fixture.Loss() / static_cast<double>(2 * GetParam().seq_len);
  EXPECT_NEAR(loss, std::log(static_cast<double>(GetParam().valid_vocab)), 0.3);
}

TEST_P(LanguageModelTest, TrainingAndValidationSeeTheSameLoss) {
  Fixture fixture(GetParam(), 2);
  const double forward = fixture.Loss();
  EXPECT_EQ(forward, fixture.LossAndGradients());
}

// Every parameter's gradient, one random direction each, against the slope of
// the loss. z-loss is part of the gradient but not of the reported loss, so its
// configuration is checked without it.
TEST_P(LanguageModelTest, GradientsAreTheSlopesOfTheLoss) {
  constexpr double kTolerance = 2e-2;  // fp32 rounding over the step
  ModelConfig config = GetParam();
  config.z_loss = 0;
  Fixture fixture(config, 2);
  // Away from the initial values, where norms have weight one and lambda is too
  // small to be seen.
  for (Parameter& parameter : fixture.model().parameters().parameters()) {
    const auto noise =
        testing::RandomNormal(9, parameter.name, parameter.value.shape(), 0.05);
    for (int64_t i = 0; i < parameter.value.num_elements(); ++i) {
      float& value = parameter.value.data<float>()[i];
      value = std::max(value, -2.0f) + noise[i];
    }
  }
  fixture.LossAndGradients();
  for (Parameter& parameter : fixture.model().parameters().parameters()) {
    const int64_t count = parameter.value.num_elements();
    const auto u =
        testing::RandomNormal(11, parameter.name, parameter.value.shape());
    double expected = 0;
    for (int64_t i = 0; i < count; ++i) {
      expected +=
          static_cast<double>(u[i]) * parameter.gradient.data<float>()[i];
    }
    const double step = 1e-2 / std::sqrt(static_cast<double>(count));
    float* value = parameter.value.data<float>();
    const std::vector<float> before(value, value + count);
    double losses[2];
    for (int side = 0; side < 2; ++side) {
      for (int64_t i = 0; i < count; ++i) {
        value[i] = before[static_cast<size_t>(i)] +
                   static_cast<float>(side == 0 ? step : -step) * u[i];
      }
      losses[side] = fixture.Loss();
    }
    std::copy(before.begin(), before.end(), value);
    const double slope = (losses[0] - losses[1]) / (2 * step);
    // The loss is a sum of 80 terms of about 4 in fp32.
    const double noise = 80 * 4 * 1e-7 * 4 / step;
    EXPECT_NEAR(slope, expected, kTolerance * std::abs(slope) + noise)
        << parameter.name;
  }
}

// What is computed anew is the same computation, so no bit changes.
TEST_P(LanguageModelTest, RecomputingChangesNoBitAndSavesMemory) {
  ModelConfig config = GetParam();
  config.num_layers = 3;
  Fixture kept(config, 2);
  const double loss = kept.LossAndGradients();
  int64_t bytes = kept.arena_bytes();
  for (const Recompute recompute : {Recompute::kSelective, Recompute::kFull}) {
    Fixture fixture(config, 2, recompute);
    EXPECT_LT(fixture.arena_bytes(), bytes);
    bytes = fixture.arena_bytes();
    EXPECT_EQ(fixture.LossAndGradients(), loss);
    EXPECT_EQ(fixture.Gradients(), kept.Gradients());
    // And again, after a forward alone.
    EXPECT_EQ(fixture.Loss(), loss);
    EXPECT_EQ(fixture.LossAndGradients(), loss);
    EXPECT_EQ(fixture.Gradients(), kept.Gradients());
  }
}

TEST(LanguageModelHealth, IsThatOfEveryLayerWhateverIsKept) {
  ModelConfig config = SmallConfig("cubit");
  std::vector<float> results[2];
  for (const Recompute recompute : {Recompute::kNone, Recompute::kFull}) {
    Fixture fixture(config, 2, recompute);
    testing::HostTensor<float> health({config.num_layers, 3});
    fixture.model().ForwardBackward(1.0f, &fixture.activations(),
                                    &fixture.scratch(), fixture.stream(),
                                    health.view());
    auto& result = results[recompute == Recompute::kNone ? 0 : 1];
    for (int64_t i = 0; i < 3 * config.num_layers; ++i) {
      result.push_back(health.view().data<float>()[i]);
    }
  }
  EXPECT_EQ(results[0], results[1]);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const float* row = &results[0][static_cast<size_t>(3 * layer)];
    EXPECT_GT(row[0], 0);
    EXPECT_LE(row[0], 1);
    EXPECT_GT(row[1], 0);
    EXPECT_NEAR(row[2], 1e-10, 1e-12);
  }
  EXPECT_NE(results[0][0], results[0][3]) << "layers differ";
}

TEST_P(LanguageModelTest, IgnoredTargetsAddNothing) {
  Fixture fixture(GetParam(), 1);
  Tensor targets = fixture.activations().targets;
  std::fill_n(targets.data<int32_t>(), targets.num_elements(), kIgnoredTarget);
  EXPECT_EQ(fixture.LossAndGradients(), 0);
  const Tensor gradients = fixture.model().parameters().flat_gradients();
  for (int64_t i = 0; i < gradients.num_elements(); ++i) {
    ASSERT_EQ(gradients.data<float>()[i], 0) << i;
  }
}

TEST_P(LanguageModelTest, DecoderGivesTheLogitsOfTheParallelForm) {
  ModelConfig config = GetParam();
  Fixture fixture(config, 1);
  const auto* ids = fixture.activations().inputs.data<int32_t>();
  auto whole =
      Decoder::Create(&fixture.model(), 1, config.seq_len, &fixture.stream());
  auto cached =
      Decoder::Create(&fixture.model(), 1, config.seq_len, &fixture.stream());
  ASSERT_TRUE(whole.ok() && cached.ok());
  auto logits = (*cached)->Start(0, {ids, 3});
  ASSERT_TRUE(logits.ok());
  for (int64_t length = 4; length <= config.seq_len; ++length) {
    *logits = (*cached)->Append({{0, ids[length - 1]}})[0];
    const auto want = (*whole)->Start(0, {ids, static_cast<size_t>(length)});
    ASSERT_TRUE(want.ok());
    ASSERT_TRUE(testing::IsClose(testing::ToDouble(*logits),
                                 testing::ToDouble(*want), 2e-5))
        << "length " << length;
  }
}

INSTANTIATE_TEST_SUITE_P(Configs, LanguageModelTest,
                         ::testing::ValuesIn(Configs()), [](const auto& test) {
                           return test.param.mixer + (test.param.tied_embeddings
                                                          ? "_options"
                                                          : "");
                         });

// recipes.md, "Sizes": millions of parameters, Transformer and Cubit.
struct Size {
  int64_t num_layers, hidden_size, num_heads;
  double transformer, cubit;
};

TEST(LanguageModelSizes, AreThoseOfThePaper) {
  for (const Size& size :
       {Size{12, 768, 12, 162.3, 169.5}, Size{24, 1024, 16, 405.3, 430.9},
        Size{24, 2048, 16, 1414.6, 1516.1},
        Size{32, 2560, 32, 2775.2, 2987.6}}) {
    for (const char* mixer : {"softmax", "cubit"}) {
      ModelConfig config = SmallConfig(mixer);
      config.num_layers = size.num_layers;
      config.hidden_size = size.hidden_size;
      config.num_heads = size.num_heads;
      config.ffn_hidden_size = 4 * size.hidden_size;
      config.vocab_size = 50304;
      config.valid_vocab = 50257;
      const auto model = LanguageModel::Create(config);
      ASSERT_TRUE(model.ok());
      const double wanted =
          std::string(mixer) == "cubit" ? size.cubit : size.transformer;
      EXPECT_NEAR(
          static_cast<double>((*model)->parameters().num_elements()) / 1e6,
          wanted, 0.051)
          << mixer << " " << size.hidden_size;
    }
  }
}

// Rows of the vocabulary beyond the tokenizer's ids change nothing.
TEST(LanguageModelVocabulary, PaddingTakesNoPart) {
  ModelConfig config = SmallConfig("cubit");
  Fixture narrow(config, 1);
  config.vocab_size = 1024;
  Fixture wide(config, 1);
  EXPECT_EQ(narrow.LossAndGradients(), wide.LossAndGradients());
  EXPECT_EQ(narrow.model().TrainFlops(1, 40), wide.model().TrainFlops(1, 40));
  for (const Parameter& parameter : wide.model().parameters().parameters()) {
    if (parameter.name != "head.weight") continue;
    const auto* gradient = parameter.gradient.data<float>();
    for (int64_t i = 61 * 32; i < 1024 * 32; ++i) ASSERT_EQ(gradient[i], 0);
  }
}

TEST(LanguageModelFlops, FollowTheClosedForm) {
  ModelConfig config = SmallConfig("cubit");
  config.cubit.lrr = false;  // the closed form leaves out the LRR projection
  const auto model = LanguageModel::Create(config);
  ASSERT_TRUE(model.ok());
  const double layers = 2, hidden = 32, ffn = 64, vocab = 64, tokens = 40;
  const double weights =
      layers * hidden * (5 * hidden + 2 * ffn) + vocab * hidden;
  // A token sees itself too, so (tokens + 1) / 2 on average.
  const double mixer = 12 * layers * hidden * (tokens + 1);
  EXPECT_NEAR((*model)->TrainFlops(1, 40), tokens * (6 * weights + mixer), 1);
}

}  // namespace
}  // namespace cubit
