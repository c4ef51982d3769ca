// SPDX-License-Identifier: Apache-2.0
//
// Mixers on sequence shards with bf16 activations, which a GPU alone has. One
// rank with its one chunk: messages have no dtype to get wrong, and ranks that
// are threads cannot share a GPU. Groups are of two sequences. The measure is
// the mixer on the whole sequence in bf16: both are compared with the mixer in
// fp32 on the same bf16 values.

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "models/mixers/registry.h"
#include "ops/rotary.h"
#include "parallel/sequence_layout.h"
#include "runtime/bfloat16.h"
#include "runtime/communication_lane.h"
#include "runtime/communicator_single.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using testing::HostTensor;
using testing::IsClose;
using testing::RandomNormal;
using testing::RelativeError;
using testing::ToDouble;

constexpr int64_t kBatch = 8;
constexpr int64_t kSeqLen = 2 * 70;
constexpr int64_t kHeads = 2;
constexpr int64_t kHeadDim = 16;
constexpr int64_t kWidth = kHeads * kHeadDim;

// An activation [B, T, C] of either dtype.
class Activation {
 public:
  Activation(DType dtype, Shape shape, const std::vector<float>& values)
      : dtype_(dtype), shape_(shape), wide_(values) {
    for (const float value : values) narrow_.push_back(ToBFloat16(value));
  }
  Tensor view() {
    return dtype_ == DType::kFloat32 ? Tensor(wide_.data(), dtype_, shape_)
                                     : Tensor(narrow_.data(), dtype_, shape_);
  }
  std::vector<float> values() const {
    if (dtype_ == DType::kFloat32) return wide_;
    std::vector<float> values;
    for (const BFloat16 value : narrow_) values.push_back(ToFloat(value));
    return values;
  }

 private:
  DType dtype_;
  Shape shape_;
  std::vector<float> wide_;
  std::vector<BFloat16> narrow_;
};

struct Results {
  std::vector<float> out, d_columns;
  std::vector<HostTensor<float>> d_scalars;
};

struct Variant {
  const char* name;
  ModelConfig config;
};

void PrintTo(const Variant& variant, std::ostream* out) {
  *out << variant.name;
}

Variant MakeVariant(const char* name, const char* mixer,
                    const std::function<void(ModelConfig*)>& change) {
  Variant variant = {name, ModelConfig()};
  variant.config.mixer = mixer;
  variant.config.num_heads = kHeads;
  variant.config.hidden_size = kWidth;
  change(&variant.config);
  return variant;
}

std::vector<Variant> Variants() {
  const auto precision = [](KrrPrecision value) {
    return [value](ModelConfig* config) { config->krr_precision = value; };
  };
  const auto plain = precision(KrrPrecision::kActivations);
  const auto in_float32 = precision(KrrPrecision::kBFloat16x3);
  return {MakeVariant("cubit", "cubit", plain),
          MakeVariant("cubit_in_float32", "cubit", in_float32),
          MakeVariant("cubit_share", "cubit",
                      [&](ModelConfig* config) {
                        plain(config);
                        config->cubit.share = true;
                      }),
          MakeVariant("deltaformer", "deltaformer", plain),
          MakeVariant("deltaformer_in_float32", "deltaformer", in_float32),
          MakeVariant("deltaformer_w_q", "deltaformer",
                      [&](ModelConfig* config) {
                        plain(config);
                        config->deltaformer.w = DeltaWeights::kQuery;
                      }),
          MakeVariant("softmax", "softmax", plain),
          MakeVariant("softmax_qk_norm", "softmax", [&](ModelConfig* config) {
            plain(config);
            config->softmax.qk_norm = true;
          })};
}

// Lays out twice, as a run does.
template <typename Layout>
Arena Allocate(const Layout& layout) {
  Arena measure = Arena::Measuring();
  layout(measure);
  auto arena =
      Arena::Create(measure.used_bytes(), MemoryCategory::kActivations);
  CUBIT_CHECK_OK(arena);
  layout(*arena);
  return *std::move(arena);
}

class Problem {
 public:
  explicit Problem(const Variant& variant) : table_({kSeqLen, kHeadDim}) {
    auto mixer = MakeMixer(variant.config);
    CUBIT_CHECK_OK(mixer);
    mixer_ = *std::move(mixer);
    Stream stream;
    RotaryTable(10000, table_.view(), stream);
    stream.Synchronize();
    const auto projections = mixer_->projections();
    num_columns_ = ProjectionColumn(projections, projections.size(), kHeads);
    uint64_t seed = 100;
    for (const MixerScalar& scalar : mixer_->scalars()) {
      scalars_.push_back(RandomNormal(seed++, "scalar", {kHeads}, 0.1));
      for (int64_t h = 0; h < kHeads; ++h) {
        scalars_.back()[h] +=
            std::max(static_cast<float>(scalar.initial), -1.0f);
      }
    }
    columns_ = Rounded(RandomNormal(1, "columns", ColumnsShape()).values());
    d_out_ = Rounded(RandomNormal(2, "d_out", OutShape()).values());
    segments_ = HostTensor<int32_t>({kBatch, kSeqLen});
    for (int64_t i = 0; i < kBatch * kSeqLen; ++i) {
      segments_[i] =
          static_cast<int32_t>((i % kSeqLen + 11 * (i / kSeqLen)) / 57);
    }
  }

  // What the mixer keeps of the whole sequences, and its scratch.
  struct WholeMemory {
    std::unique_ptr<MixerSaved> saved;
    std::unique_ptr<MixerScratch> scratch;
    Arena arena;
  };
  WholeMemory AllocateWhole(DType dtype) const {
    const MixerShape shape = {kBatch, kSeqLen, kHeads, kHeadDim, dtype};
    std::unique_ptr<MixerSaved> saved;
    std::unique_ptr<MixerScratch> scratch;
    Arena arena = Allocate([&](Arena& a) {
      saved = mixer_->AllocateSaved(shape, a);
      scratch = mixer_->AllocateScratch(shape, a);
    });
    return {std::move(saved), std::move(scratch), std::move(arena)};
  }

  Results Whole(DType dtype) const {
    const WholeMemory memory = AllocateWhole(dtype);
    return Run(dtype, [&](const Call& call) {
      mixer_->Forward(call.context, call.columns, memory.saved.get(), call.out);
      mixer_->Backward(call.context, call.columns, *memory.saved, call.out,
                       call.d_out, memory.scratch.get(), call.d_columns,
                       call.d_scalars,
                       /*health=*/Tensor(), /*d_column_sums=*/Tensor());
    });
  }

  // [3] of the backward, and of the pass for it over what the forward kept.
  std::array<HostTensor<float>, 2> Health(DType dtype) const {
    const WholeMemory memory = AllocateWhole(dtype);
    std::array<HostTensor<float>, 2> health = {HostTensor<float>({3}),
                                               HostTensor<float>({3})};
    Run(dtype, [&](const Call& call) {
      mixer_->Forward(call.context, call.columns, memory.saved.get(), call.out);
      mixer_->sharded()->HealthSharded(call.context, call.columns,
                                       *memory.saved, health[1].view());
      mixer_->Backward(call.context, call.columns, *memory.saved, call.out,
                       call.d_out, memory.scratch.get(), call.d_columns,
                       call.d_scalars, health[0].view(),
                       /*d_column_sums=*/Tensor());
    });
    return health;
  }
  bool has_health() const { return mixer_->has_health(); }

  Results Sharded(DType dtype) const {
    const SequenceShardedMixer& mixer = *mixer_->sharded();
    const SequenceLayout layout(kSeqLen, /*cp_size=*/1);
    CommunicationLane lane(MakeSingleCommunicator("cp"));
    ParallelContext parallel;
    parallel.cp_lane = &lane;
    const SequenceShard sequence = {layout, 0, &parallel};
    const MixerShape shape = {kBatch, kSeqLen, kHeads, kHeadDim, dtype};
    std::unique_ptr<MixerSaved> saved;
    std::unique_ptr<MixerScratch> scratch;
    const Arena arena = Allocate([&](Arena& a) {
      saved = mixer.AllocateShardedSaved(shape, layout, a);
      scratch = mixer.AllocateShardedScratch(shape, layout, a);
    });
    Results results = Run(dtype, [&](const Call& call) {
      // One chunk: the order of chunks is that of sequences.
      MixerContext context = call.context;
      context.mask.segment_ids =
          context.mask.segment_ids.Reshape({1, kBatch, kSeqLen});
      mixer.ForwardSharded(context, sequence, call.columns, saved.get(),
                           scratch.get(), call.out);
      mixer.BackwardSharded(context, sequence, call.columns, *saved, call.out,
                            call.d_out, scratch.get(), call.d_columns,
                            call.d_scalars);
    });
    CUBIT_CHECK_OK(parallel.status);
    return results;
  }

 private:
  struct Call {
    MixerContext context;
    Tensor columns, out, d_out, d_columns;
    std::vector<Tensor> d_scalars;
  };

  static Shape OutShape() { return {kBatch, kSeqLen, kWidth}; }
  Shape ColumnsShape() const { return {kBatch, kSeqLen, num_columns_}; }
  static std::vector<float> Rounded(std::vector<float> values) {
    for (float& value : values) value = ToFloat(ToBFloat16(value));
    return values;
  }

  template <typename Body>
  Results Run(DType dtype, const Body& body) const {
    Stream stream;
    Activation columns(dtype, ColumnsShape(), columns_);
    Activation d_columns(dtype, ColumnsShape(),
                         std::vector<float>(columns_.size(), 0));
    Activation d_out(dtype, OutShape(), d_out_);
    Activation out(dtype, OutShape(), std::vector<float>(d_out_.size(), 0));
    Results results;
    results.d_scalars.resize(scalars_.size(), HostTensor<float>({kHeads}, 0));
    Call call;
    for (const auto& scalar : scalars_) {
      call.context.scalars.push_back(scalar.view());
    }
    call.context.rotary_table = table_.view();
    call.context.mask.segment_ids = segments_.view();
    call.context.stream = &stream;
    call.columns = columns.view();
    call.out = out.view();
    call.d_out = d_out.view();
    call.d_columns = d_columns.view();
    for (auto& d : results.d_scalars) call.d_scalars.push_back(d.view());
    body(call);
    stream.Synchronize();
    results.out = out.values();
    results.d_columns = d_columns.values();
    return results;
  }

  int64_t num_columns_ = 0;
  std::unique_ptr<TokenMixer> mixer_;
  HostTensor<float> table_;
  HostTensor<int32_t> segments_;
  std::vector<HostTensor<float>> scalars_;
  std::vector<float> columns_, d_out_;
};

class ShardedMixerBFloat16 : public ::testing::TestWithParam<Variant> {};

// At most twice the error of the whole sequence in bf16, and a bf16 rounding of
// the norm.
void ExpectAsGood(const std::vector<float>& got,
                  const std::vector<float>& whole,
                  const std::vector<float>& exact, const char* name) {
  constexpr double kRounding = 1.0 / 512;
  const double budget =
      2 * RelativeError(ToDouble(whole), ToDouble(exact)) + kRounding;
  EXPECT_TRUE(IsClose(ToDouble(got), ToDouble(exact), budget)) << name;
}

TEST_P(ShardedMixerBFloat16, IsAsGoodAsTheWholeSequence) {
  const Problem problem(GetParam());
  const Results exact = problem.Whole(DType::kFloat32);
  const Results whole = problem.Whole(DType::kBFloat16);
  const Results got = problem.Sharded(DType::kBFloat16);
  ExpectAsGood(got.out, whole.out, exact.out, "out");
  ExpectAsGood(got.d_columns, whole.d_columns, exact.d_columns, "d_columns");
  for (size_t i = 0; i < exact.d_scalars.size(); ++i) {
    ExpectAsGood(got.d_scalars[i].values(), whole.d_scalars[i].values(),
                 exact.d_scalars[i].values(), "scalar");
  }
}

TEST_P(ShardedMixerBFloat16, TwoRunsAreEqualBitForBit) {
  const Problem problem(GetParam());
  const Results first = problem.Sharded(DType::kBFloat16);
  const Results second = problem.Sharded(DType::kBFloat16);
  EXPECT_EQ(first.out, second.out);
  EXPECT_EQ(first.d_columns, second.d_columns);
}

TEST_P(ShardedMixerBFloat16, HealthIsThatOfThePassForIt) {
  const Problem problem(GetParam());
  if (!problem.has_health()) return;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const auto [got, want] = problem.Health(dtype);
    // Products are off by less than 2^-16 of a score, of at most 8.
    EXPECT_NEAR(got[0], want[0], 8 * 0x1p-16 * want[0]);
    // A solve in fp32 has an X that is not rounded to bf16.
    EXPECT_NEAR(got[1], want[1], 0x1p-8 * want[1]);
    EXPECT_EQ(got[2], want[2]);
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, ShardedMixerBFloat16,
                         ::testing::ValuesIn(Variants()),
                         [](const auto& param_info) {
                           return std::string(param_info.param.name);
                         });

}  // namespace
}  // namespace cubit
