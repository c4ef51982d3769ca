// SPDX-License-Identifier: Apache-2.0
//
// Three steps of summing, clipping and updating on many layouts, against the
// same steps in double on whole tensors; and what must be equal to the bit.

#include "parallel/sharded_adamw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "ops/adamw.h"
#include "ops/elementwise.h"
#include "runtime/bfloat16.h"
#include "runtime/status_macros.h"
#include "tests/parallel/optimizer_testing.h"

namespace cubit {
namespace {

constexpr int64_t kSteps = 3;

struct Layout {
  MeshSizes sizes;
  GradientReducerOptions options;
};

std::string NameOf(const Layout& layout) {
  return absl::StrCat(layout.sizes.ToString(),
                      layout.options.shard ? "Sharded" : "Whole",
                      layout.options.bucket_bytes < 65536 ? "Small" : "One");
}

// What all ranks have after the steps; ADD_FAILURE where replicas differ.
struct RunResult {
  ModelValues values;
  std::vector<double> squared_norms;  // of the last step, by rank
};

RunResult TrainOn(const Layout& layout, bool one_by_one = false) {
  RunResult result;
  result.squared_norms.resize(static_cast<size_t>(layout.sizes.world()));
  std::mutex mutex;
  const auto statuses =
      RunOnMesh(layout.sizes, [&](MeshCommunicators& mesh) -> absl::Status {
        RankModel model(&mesh, layout.options);
        for (int64_t step = 1; step <= kSteps; ++step) {
          CUBIT_RETURN_IF_ERROR(one_by_one ? model.StepOneByOne(step)
                                           : model.Step(step));
        }
        const std::lock_guard<std::mutex> lock(mutex);
        EXPECT_TRUE(model.MergeValues(&result.values))
            << "rank " << mesh.rank() << " differs from another";
        result.squared_norms[static_cast<size_t>(mesh.rank())] =
            model.SquaredNorm();
        return absl::OkStatus();
      });
  for (const absl::Status& status : statuses)
    EXPECT_TRUE(status.ok()) << status;
  return result;
}

class ShardedAdamWLayouts : public testing::TestWithParam<Layout> {};

TEST_P(ShardedAdamWLayouts, StepsAreThoseOfOneRankWithTheSum) {
  const Layout& layout = GetParam();
  const RunResult found = TrainOn(layout);
  const ExpectedRun wanted = RunReference(layout.sizes, kSteps);
  for (double squared_norm : found.squared_norms) {
    EXPECT_EQ(squared_norm, found.squared_norms[0]);
    EXPECT_NEAR(squared_norm, wanted.squared_norms.back(),
                1e-6 * wanted.squared_norms.back());
  }
  EXPECT_GT(wanted.squared_norms.back(), 4.0) << "clipping is not active";
  ASSERT_EQ(found.values.size(), wanted.values.size());
  for (const auto& [name, values] : wanted.values) {
    const Values& got = found.values.at(name);
    ASSERT_EQ(got.size(), values.size()) << name;
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(got[i], values[i], 1e-6) << name << " element " << i;
    }
  }
}

// Also where gradients come late, or buckets begin at other times.
TEST_P(ShardedAdamWLayouts, TwoRunsAreEqualToTheBit) {
  const RunResult a = TrainOn(GetParam());
  const RunResult b = TrainOn(GetParam(), /*one_by_one=*/true);
  EXPECT_EQ(a.values, b.values);
  EXPECT_EQ(a.squared_norms, b.squared_norms);
}

std::vector<Layout> Layouts() {
  std::vector<Layout> layouts;
  for (const MeshSizes& sizes : std::vector<MeshSizes>{{1, 1, 1, 1},
                                                       {2, 1, 1, 1},
                                                       {4, 1, 1, 1},
                                                       {2, 2, 1, 1},
                                                       {1, 1, 2, 1},
                                                       {2, 1, 2, 1},
                                                       {1, 1, 1, 2},
                                                       {2, 1, 2, 2},
                                                       {1, 2, 1, 2},
                                                       {3, 1, 1, 1}}) {
    for (bool shard : {true, false}) {
      layouts.push_back({sizes, {shard, 1000}});
    }
  }
  layouts.push_back({{2, 1, 2, 1}, {true, 1 << 20}});
  return layouts;
}

INSTANTIATE_TEST_SUITE_P(Meshes, ShardedAdamWLayouts,
                         testing::ValuesIn(Layouts()), [](const auto& layout) {
                           return NameOf(layout.param);
                         });

// One rank makes the same calls on the flat buffers as there would be without
// any of this.
TEST(ShardedAdamW, OneRankHasTheBitsOfThePlainUpdate) {
  const auto mesh = MeshCommunicators::Single();
  RankModel model(mesh.get(), {});
  RankModel plain(mesh.get(), {});
  ParameterStore& store = plain.store();
  const int64_t size = store.size();
  std::vector<float> m(static_cast<size_t>(size));
  std::vector<float> v(m.size());
  std::vector<uint8_t> decay(m.size() / kAdamWGroup);
  for (const Parameter& parameter : store.parameters()) {
    const FlatRange range = RangeOf(parameter);
    for (int64_t i = range.begin; i < range.end; ++i) {
      decay[static_cast<size_t>(i / kAdamWGroup)] = parameter.decay ? 1 : 0;
    }
  }
  Stream stream;
  for (int64_t step = 1; step <= kSteps; ++step) {
    ASSERT_TRUE(model.Step(step).ok());
    plain.FillGradients(step);
    double sum = 0;
    float scale = 0;
    const Tensor sum_view(&sum, DType::kFloat64, {1});
    const Tensor scale_view(&scale, DType::kFloat32, {1});
    SumOfSquares(store.flat_gradients(), sum_view, stream);
    ClipScale(sum_view, TestAdamW().grad_clip_norm, scale_view, stream);
    AdamWStep update;
    update.learning_rate = static_cast<float>(kTestLearningRate);
    update.weight_decay = 0.1f;
    update.step = step;
    AdamWUpdate(update,
                ConstTensor(decay.data(), DType::kUInt8,
                            {static_cast<int64_t>(decay.size())}),
                scale_view, store.flat_gradients(),
                Tensor(m.data(), DType::kFloat32, {size}),
                Tensor(v.data(), DType::kFloat32, {size}), store.flat_values(),
                Tensor(), stream);
    EXPECT_EQ(model.SquaredNorm(), sum);
  }
  EXPECT_EQ(
      std::memcmp(model.store().flat_values().raw(), store.flat_values().raw(),
                  static_cast<size_t>(store.buffer_bytes())),
      0);
}

TEST(ShardedAdamW, ANaNOnOneRankStopsAll) {
  for (bool shard : {true, false}) {
    const auto statuses =
        RunOnMesh({2, 1, 2, 2}, [&](MeshCommunicators& mesh) -> absl::Status {
          RankModel model(&mesh, {shard, 1000});
          CUBIT_RETURN_IF_ERROR(model.Step(1));
          ModelValues before;
          model.MergeValues(&before);
          model.FillGradients(2);
          if (mesh.rank() == 5) {
            Parameter& parameter = model.store().parameters().back();
            *parameter.gradient.data<float>() =
                std::numeric_limits<float>::quiet_NaN();
          }
          model.ReportReady();
          CUBIT_RETURN_IF_ERROR(model.reducer().Finish(model.stream()));
          CUBIT_RETURN_IF_ERROR(
              model.optimizer().ComputeGradientNorm(model.stream()));
          model.optimizer().Update(2, kTestLearningRate, model.stream());
          CUBIT_RETURN_IF_ERROR(
              model.optimizer().WaitForAllWeights(model.stream()));
          EXPECT_TRUE(std::isnan(model.SquaredNorm())) << mesh.rank();
          ModelValues after;
          model.MergeValues(&after);
          EXPECT_EQ(after, before) << mesh.rank();
          // And the moments: the next step is as if this one had not been.
          return model.Step(2);
        });
    for (const auto& status : statuses) EXPECT_TRUE(status.ok()) << status;
  }
}

// A parameter that was waited for has its new weights, whatever still moves.
TEST(ShardedAdamW, WaitForWeightsIsEnoughForWhatItNames) {
  const auto statuses =
      RunOnMesh({4, 1, 1, 1}, [](MeshCommunicators& mesh) -> absl::Status {
        RankModel model(&mesh, {true, 1000}, DType::kBFloat16);
        model.FillGradients(1);
        model.ReportReady();
        CUBIT_RETURN_IF_ERROR(model.reducer().Finish(model.stream()));
        CUBIT_RETURN_IF_ERROR(
            model.optimizer().ComputeGradientNorm(model.stream()));
        model.optimizer().Update(1, kTestLearningRate, model.stream());
        ModelValues early;
        for (size_t i = 0; i < model.num_parameters(); ++i) {
          model.optimizer().WaitForWeights(i, i + 1, model.stream());
          const Parameter& parameter = model.store().parameters()[i];
          Merge(parameter.name, parameter.shard, parameter.value.data<float>(),
                &early);
          for (int64_t k = 0; k < parameter.value.num_elements(); ++k) {
            EXPECT_EQ(ToFloat(parameter.compute.data<BFloat16>()[k]),
                      ToFloat(ToBFloat16(parameter.value.data<float>()[k])));
          }
        }
        CUBIT_RETURN_IF_ERROR(
            model.optimizer().WaitForAllWeights(model.stream()));
        EXPECT_TRUE(model.MergeValues(&early));
        return absl::OkStatus();
      });
  for (const absl::Status& status : statuses)
    EXPECT_TRUE(status.ok()) << status;
}

TEST(ShardedAdamW, MemoryFallsWithTheGroup) {
  const auto bytes = [](int group, bool shard) {
    GradientReducerOptions options;
    options.shard = shard;
    ParameterStore store;
    store.Add("w", ShardSpec::Whole({1 << 20}), Initializer::Constant(0), true);
    store.AlignTo(BucketLayout::Alignment(group, options));
    const BucketLayout layout(store, group, options);
    return ShardedAdamW::StateBytes(store, layout);
  };
  const int64_t whole = bytes(1, true);
  EXPECT_NEAR(static_cast<double>(bytes(4, true)),
              static_cast<double>(whole) / 4, 2048);
  EXPECT_EQ(bytes(4, false), whole);
}

}  // namespace
}  // namespace cubit
