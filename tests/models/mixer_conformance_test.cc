// SPDX-License-Identifier: Apache-2.0
//
// What every registered mixer and each of its variants must satisfy: causality,
// document masks, gradients, determinism, cached decoding equal to the parallel
// form.

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "models/mixers/registry.h"
#include "ops/rotary.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using testing::HostTensor;
using testing::IsClose;
using testing::RandomNormal;
using testing::ToDouble;

constexpr int64_t kHeads = 2;
constexpr int64_t kHeadDim = 16;

struct Variant {
  std::string name;
  ModelConfig config;
};

ModelConfig BaseConfig(const std::string& mixer) {
  ModelConfig config;
  config.mixer = mixer;
  config.num_heads = kHeads;
  config.hidden_size = kHeads * kHeadDim;
  return config;
}

std::vector<Variant> Variants() {
  std::vector<Variant> list;
  for (const std::string& mixer : MixerNames()) {
    list.push_back({mixer, BaseConfig(mixer)});
  }
  list.push_back({"cubit_share", BaseConfig("cubit")});
  list.back().config.cubit.share = true;
  list.push_back({"cubit_nolrr", BaseConfig("cubit")});
  list.back().config.cubit.lrr = false;
  list.push_back({"softmax_qk_norm", BaseConfig("softmax")});
  list.back().config.softmax.qk_norm = true;
  list.push_back({"deltaformer_w_k", BaseConfig("deltaformer")});
  list.back().config.deltaformer.w = DeltaWeights::kKey;
  list.push_back({"deltaformer_w_q_linear", BaseConfig("deltaformer")});
  list.back().config.deltaformer.w = DeltaWeights::kQuery;
  list.back().config.deltaformer.beta = DeltaBeta::kLinear;
  return list;
}

// One call of a mixer with everything it needs.
class Harness {
 public:
  Harness(const ModelConfig& config, int64_t batch, int64_t seq_len)
      : batch_(batch), seq_len_(seq_len), table_({seq_len, kHeadDim}) {
    auto mixer = MakeMixer(config);
    CUBIT_CHECK_OK(mixer);
    mixer_ = *std::move(mixer);
    RotaryTable(10000, table_.view(), stream_);
    const auto projections = mixer_->projections();
    columns_ = ProjectionColumn(projections, projections.size(), kHeads);
    for (const MixerScalar& scalar : mixer_->scalars()) {
      scalars_.push_back(
          HostTensor<float>({kHeads}, static_cast<float>(scalar.initial)));
    }
  }

  int64_t columns() const { return columns_; }
  std::vector<HostTensor<float>>& scalars() { return scalars_; }
  const TokenMixer& mixer() const { return *mixer_; }
  Stream& stream() { return stream_; }
  MixerShape shape() const { return {batch_, seq_len_, kHeads, kHeadDim}; }

  void SetSegments(std::vector<int32_t> ids) {
    segments_ = HostTensor<int32_t>({batch_, seq_len_}, std::move(ids));
  }

  MixerContext Context() {
    MixerContext context;
    for (auto& scalar : scalars_) context.scalars.push_back(scalar.view());
    context.rotary_table = table_.view();
    if (segments_.shape().rank() > 0) {
      context.mask.segment_ids = segments_.view();
    }
    context.stream = &stream_;
    return context;
  }

  HostTensor<float> RandomColumns(uint64_t seed) const {
    return RandomNormal(seed, "columns", {batch_, seq_len_, columns_});
  }

  // `kept` receives the rotated columns.
  HostTensor<float> Forward(const HostTensor<float>& input,
                            HostTensor<float>* kept,
                            std::unique_ptr<MixerSaved>* saved) {
    *kept = input;
    Arena measure = Arena::Measuring();
    mixer_->AllocateSaved(shape(), measure);
    auto arena =
        Arena::Create(measure.used_bytes(), MemoryCategory::kActivations);
    CUBIT_CHECK_OK(arena);
    arenas_.push_back(std::make_unique<Arena>(*std::move(arena)));
    *saved = mixer_->AllocateSaved(shape(), *arenas_.back());
    HostTensor<float> out =
        testing::Poisoned({batch_, seq_len_, kHeads * kHeadDim});
    mixer_->Forward(Context(), kept->view(), saved->get(), out.view());
    return out;
  }

  HostTensor<float> Forward(const HostTensor<float>& input) {
    HostTensor<float> kept;
    std::unique_ptr<MixerSaved> saved;
    return Forward(input, &kept, &saved);
  }

  // Gradients of sum(out * weights): of the columns, then of each scalar.
  std::vector<HostTensor<float>> Gradients(const HostTensor<float>& input,
                                           const HostTensor<float>& weights) {
    HostTensor<float> kept;
    std::unique_ptr<MixerSaved> saved;
    const HostTensor<float> out = Forward(input, &kept, &saved);
    Arena measure = Arena::Measuring();
    mixer_->AllocateScratch(shape(), measure);
    auto arena =
        Arena::Create(measure.used_bytes(), MemoryCategory::kWorkspace);
    CUBIT_CHECK_OK(arena);
    auto scratch = mixer_->AllocateScratch(shape(), *arena);
    std::vector<HostTensor<float>> gradients = {
        testing::Poisoned(input.shape())};
    HostTensor<float> sums({columns_}, 1.0f);
    std::vector<Tensor> d_scalars;
    gradients.resize(1 + scalars_.size(), HostTensor<float>({kHeads}));
    for (size_t i = 0; i < scalars_.size(); ++i) {
      d_scalars.push_back(gradients[i + 1].view());
    }
    mixer_->Backward(Context(), kept.view(), *saved, out.view(), weights.view(),
                     scratch.get(), gradients[0].view(), d_scalars,
                     /*health=*/Tensor(), sums.view());
    ExpectSumsOfColumns(gradients[0], sums);
    return gradients;
  }

 private:
  // `sums` are those over tokens, and one.
  void ExpectSumsOfColumns(const HostTensor<float>& d_columns,
                           const HostTensor<float>& sums) const {
    std::vector<double> want(static_cast<size_t>(columns_), 1.0);
    for (int64_t i = 0; i < d_columns.shape().num_elements(); ++i) {
      want[static_cast<size_t>(i % columns_)] +=
          static_cast<double>(d_columns[i]);
    }
    EXPECT_TRUE(testing::IsClose(testing::ToDouble(sums.values()), want, 1e-6));
  }

  int64_t batch_;
  int64_t seq_len_;
  int64_t columns_ = 0;
  Stream stream_;
  HostTensor<float> table_;
  HostTensor<int32_t> segments_;
  std::unique_ptr<TokenMixer> mixer_;
  std::vector<HostTensor<float>> scalars_;
  std::vector<std::unique_ptr<Arena>> arenas_;
};

// A lambda that the gradient can see, and scalars off their initial values.
void Perturb(Harness& harness) {
  uint64_t seed = 100;
  for (HostTensor<float>& scalar : harness.scalars()) {
    const auto noise = RandomNormal(seed++, "scalar", {kHeads}, 0.1);
    for (int64_t h = 0; h < kHeads; ++h) {
      scalar[h] = std::max(scalar[h], -1.0f) + noise[h];
    }
  }
}

double WeightedSum(const HostTensor<float>& out,
                   const HostTensor<float>& weights) {
  double sum = 0;
  for (int64_t i = 0; i < out.shape().num_elements(); ++i) {
    sum += static_cast<double>(out[i]) * weights[i];
  }
  return sum;
}

class MixerConformance : public ::testing::TestWithParam<Variant> {};

TEST_P(MixerConformance, LaterTokensDoNotChangeEarlierOutputs) {
  constexpr int64_t kLength = 97;
  constexpr int64_t kChanged = 70;
  Harness harness(GetParam().config, 1, kLength);
  Perturb(harness);
  HostTensor<float> columns = harness.RandomColumns(1);
  const HostTensor<float> before = harness.Forward(columns);
  for (int64_t i = kChanged * harness.columns();
       i < columns.shape().num_elements(); ++i) {
    columns[i] += 1.0f;
  }
  const HostTensor<float> after = harness.Forward(columns);
  const int64_t width = kHeads * kHeadDim;
  for (int64_t i = 0; i < kChanged * width; ++i) {
    ASSERT_EQ(before[i], after[i]) << "token " << i / width;
  }
  EXPECT_NE(before[kChanged * width], after[kChanged * width]);
}

TEST_P(MixerConformance, DocumentsDoNotSeeEachOther) {
  constexpr int64_t kLength = 90;
  constexpr int64_t kBorder = 37;
  Harness harness(GetParam().config, 1, kLength);
  Perturb(harness);
  std::vector<int32_t> segments(kLength, 0);
  std::fill(segments.begin() + kBorder, segments.end(), 1);
  harness.SetSegments(segments);
  HostTensor<float> columns = harness.RandomColumns(2);
  const HostTensor<float> before = harness.Forward(columns);
  for (int64_t i = 0; i < kBorder * harness.columns(); ++i) {
    columns[i] = -columns[i];
  }
  const HostTensor<float> after = harness.Forward(columns);
  const int64_t width = kHeads * kHeadDim;
  EXPECT_NE(before[0], after[0]);
  for (int64_t i = kBorder * width; i < kLength * width; ++i) {
    ASSERT_EQ(before[i], after[i]) << "token " << i / width;
  }
}

// x + step u.
HostTensor<float> Moved(HostTensor<float> x, float step,
                        const HostTensor<float>& u) {
  for (int64_t i = 0; i < x.shape().num_elements(); ++i) x[i] += step * u[i];
  return x;
}

TEST_P(MixerConformance, GradientIsTheSlopeAlongRandomDirections) {
  constexpr int64_t kLength = 70;
  constexpr double kStep = 2e-3;
  constexpr double kTolerance = 1e-2;  // fp32 rounding over the step
  for (const bool documents : {false, true}) {
    Harness harness(GetParam().config, 2, kLength);
    Perturb(harness);
    if (documents) {
      std::vector<int32_t> segments(2 * kLength);
      for (int64_t i = 0; i < 2 * kLength; ++i) {
        segments[static_cast<size_t>(i)] =
            static_cast<int32_t>(i % kLength / 29);
      }
      harness.SetSegments(segments);
    }
    const HostTensor<float> columns = harness.RandomColumns(3);
    const HostTensor<float> weights =
        RandomNormal(4, "weights", {2, kLength, kHeads * kHeadDim});
    const auto gradients = harness.Gradients(columns, weights);
    const std::vector<HostTensor<float>> scalars = harness.scalars();
    for (uint64_t direction = 0; direction <= scalars.size(); ++direction) {
      const HostTensor<float>& at =
          direction == 0 ? columns : scalars[direction - 1];
      const auto u = RandomNormal(50 + direction, "direction", at.shape());
      double expected = 0;
      for (int64_t i = 0; i < at.shape().num_elements(); ++i) {
        expected += static_cast<double>(u[i]) * gradients[direction][i];
      }
      double values[2];
      for (int side = 0; side < 2; ++side) {
        const HostTensor<float> moved =
            Moved(at, static_cast<float>(side == 0 ? kStep : -kStep), u);
        if (direction > 0) harness.scalars()[direction - 1] = moved;
        values[side] = WeightedSum(
            harness.Forward(direction == 0 ? moved : columns), weights);
        harness.scalars() = scalars;
      }
      const double slope = (values[0] - values[1]) / (2 * kStep);
      EXPECT_NEAR(slope, expected, kTolerance * std::max(std::abs(slope), 1.0))
          << "direction " << direction << " documents " << documents;
    }
  }
}

TEST_P(MixerConformance, TwoRunsAreEqualBitForBit) {
  Harness harness(GetParam().config, 2, 130);
  const HostTensor<float> columns = harness.RandomColumns(5);
  const HostTensor<float> weights =
      RandomNormal(6, "weights", {2, 130, kHeads * kHeadDim});
  EXPECT_EQ(harness.Forward(columns).values(),
            harness.Forward(columns).values());
  const auto first = harness.Gradients(columns, weights);
  const auto second = harness.Gradients(columns, weights);
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].values(), second[i].values()) << "gradient " << i;
  }
}

TEST_P(MixerConformance, CachedDecodingEqualsTheParallelForm) {
  constexpr int64_t kLength = 80;
  for (const int64_t prompt : {1, 66}) {
    Harness harness(GetParam().config, 1, kLength);
    Perturb(harness);
    const HostTensor<float> columns = harness.RandomColumns(7);
    const HostTensor<float> want = harness.Forward(columns);

    Harness head(GetParam().config, 1, prompt);
    head.scalars() = harness.scalars();
    HostTensor<float> prompt_columns({1, prompt, harness.columns()});
    std::copy_n(columns.values().begin(), prompt_columns.values().size(),
                prompt_columns.values().begin());
    HostTensor<float> kept;
    std::unique_ptr<MixerSaved> saved;
    std::vector<float> got =
        head.Forward(prompt_columns, &kept, &saved).values();

    Arena measure = Arena::Measuring();
    harness.mixer().AllocateCache(harness.shape(), measure);
    auto arena =
        Arena::Create(measure.used_bytes(), MemoryCategory::kActivations);
    CUBIT_CHECK_OK(arena);
    auto cache = harness.mixer().AllocateCache(harness.shape(), *arena);
    harness.mixer().FillCache(kept.view(), *saved, cache.get(),
                              harness.stream());
    for (int64_t t = prompt; t < kLength; ++t) {
      HostTensor<float> token({1, 1, harness.columns()});
      std::copy_n(columns.values().begin() + t * harness.columns(),
                  harness.columns(), token.values().begin());
      HostTensor<float> out = testing::Poisoned({1, 1, kHeads * kHeadDim});
      harness.mixer().Decode(harness.Context(), t, token.view(), cache.get(),
                             out.view());
      got.insert(got.end(), out.values().begin(), out.values().end());
    }
    EXPECT_TRUE(IsClose(ToDouble(got), ToDouble(want.values()), 1e-5))
        << "prompt " << prompt;
  }
}

INSTANTIATE_TEST_SUITE_P(Mixers, MixerConformance,
                         ::testing::ValuesIn(Variants()),
                         [](const auto& test) { return test.param.name; });

TEST(MixerRegistry, RefusesUnknownMixersAndListsTheKnown) {
  const auto mixer = MakeMixer(BaseConfig("attention"));
  ASSERT_FALSE(mixer.ok());
  EXPECT_NE(mixer.status().message().find("cubit, deltaformer, softmax"),
            absl::string_view::npos)
      << mixer.status();
}

}  // namespace
}  // namespace cubit
