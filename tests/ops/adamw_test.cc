// SPDX-License-Identifier: Apache-2.0

#include "ops/adamw.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "ops/adamw_reference.h"
#include "runtime/bfloat16.h"
#include "tests/ops/backend_budget.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::HostTensor;
using ::cubit::testing::IsWithinBudget;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::ToDouble;

AdamWStep Step(int64_t step) {
  AdamWStep s;
  s.learning_rate = 0.02f;
  s.weight_decay = 0.1f;
  s.step = step;
  return s;
}

struct State {
  explicit State(int64_t n)
      : m({n}),
        v({n}),
        weight(RandomNormal(1, "weight", {n})),
        compute({n}),
        decay({(n + kAdamWGroup - 1) / kAdamWGroup}, 1),
        grad_scale({1}, 1.0f) {}

  HostTensor<float> m;
  HostTensor<float> v;
  HostTensor<float> weight;
  HostTensor<BFloat16> compute;
  HostTensor<uint8_t> decay;
  HostTensor<float> grad_scale;

  void Update(const AdamWStep& step, const HostTensor<float>& grad) {
    Stream stream;
    Update(step, grad, stream);
  }
  void Update(const AdamWStep& step, const HostTensor<float>& grad,
              Stream& stream) {
    AdamWUpdate(step, decay.view(), grad_scale.view(), grad.view(), m.view(),
                v.view(), weight.view(), compute.view(), stream);
    stream.Synchronize();
  }
};

// The same run by the reference.
template <typename T>
struct ReferenceState {
  explicit ReferenceState(const State& state)
      : m(testing::Widen<T>(state.m.values())),
        v(testing::Widen<T>(state.v.values())),
        weight(testing::Widen<T>(state.weight.values())),
        decay(state.decay.values()),
        grad_scale(static_cast<double>(state.grad_scale[0])) {}

  void Update(const AdamWStep& step, const HostTensor<float>& grad) {
    for (size_t i = 0; i < m.size(); ++i) {
      const auto updated = reference::AdamWUpdate<T>(
          step, decay[i / kAdamWGroup] != 0, grad_scale,
          static_cast<T>(grad.values()[i]), {m[i], v[i], weight[i]});
      m[i] = updated.m;
      v[i] = updated.v;
      weight[i] = updated.weight;
    }
  }

  std::vector<T> m;
  std::vector<T> v;
  std::vector<T> weight;
  std::vector<uint8_t> decay;
  double grad_scale;
};

class AdamW : public ::testing::TestWithParam<int64_t> {};

TEST_P(AdamW, FollowsTheReferenceOverManySteps) {
  State state(GetParam());
  state.grad_scale[0] = 0.25f;
  for (int64_t i = 0; i < state.decay.shape()[0]; i += 3) state.decay[i] = 0;
  ReferenceState<float> plain(state);
  ReferenceState<double> exact(state);
  for (int64_t step = 1; step <= 10; ++step) {
    const HostTensor<float> grad =
        RandomNormal(static_cast<uint64_t>(step), "grad", {GetParam()});
    state.Update(Step(step), grad);
    plain.Update(Step(step), grad);
    exact.Update(Step(step), grad);
  }
  EXPECT_TRUE(IsWithinBudget(state.m.values(), plain.m, exact.m));
  EXPECT_TRUE(IsWithinBudget(state.v.values(), plain.v, exact.v));
  EXPECT_TRUE(
      IsWithinBudget(state.weight.values(), plain.weight, exact.weight));
  for (int64_t i = 0; i < GetParam(); ++i) {
    ASSERT_EQ(ToFloat(state.compute[i]), ToFloat(ToBFloat16(state.weight[i])));
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, AdamW, ::testing::Values(1, 19, 16384, 20001));

TEST(SumInOrder, AddsInTheOrderOfTheTerms) {
  Stream stream;
  HostTensor<double> sum({1}, 7.0);
  // In another order the ones would not be lost.
  const HostTensor<double> terms({4}, {1e16, 1.0, 1.0, 0.5});
  SumInOrder(terms.view(), sum.view(), stream);
  stream.Synchronize();
  EXPECT_EQ(sum[0], 1e16);
  SumInOrder(terms.view().Slice(1, 3), sum.view(), stream);
  stream.Synchronize();
  EXPECT_EQ(sum[0], 2.5);
  SumInOrder(terms.view().Slice(0, 0), sum.view(), stream);
  stream.Synchronize();
  EXPECT_EQ(sum[0], 0.0);
}

TEST(AdamWUpdate, FirstStepMovesByTheLearningRate) {
  State state(2);
  state.weight.values() = {1.0f, 1.0f};
  AdamWStep step = Step(1);
  step.weight_decay = 0;
  state.Update(step, HostTensor<float>({2}, {3.0f, -0.01f}));
  EXPECT_NEAR(state.weight[0], 0.98f, 1e-6f);
  EXPECT_NEAR(state.weight[1], 1.02f, 1e-6f);
}

TEST(AdamWUpdate, DecayIsNotPartOfTheGradient) {
  State state(1);
  state.weight.values() = {2.0f};
  state.Update(Step(1), HostTensor<float>({1}, 0.0f));
  EXPECT_FLOAT_EQ(state.weight[0], 2.0f * (1.0f - 0.02f * 0.1f));
  EXPECT_EQ(state.m[0], 0.0f);
  EXPECT_EQ(state.v[0], 0.0f);
}

TEST(AdamWUpdate, ScalesTheGradient) {
  State scaled(1);
  State plain(1);
  scaled.grad_scale[0] = 0.25f;
  scaled.Update(Step(1), HostTensor<float>({1}, 4.0f));
  plain.Update(Step(1), HostTensor<float>({1}, 1.0f));
  EXPECT_EQ(scaled.m.values(), plain.m.values());
  EXPECT_EQ(scaled.v.values(), plain.v.values());
  EXPECT_EQ(scaled.weight.values(), plain.weight.values());
}

TEST(AdamWUpdate, AScaleThatIsNotANumberChangesNothing) {
  State state(100);
  state.m = RandomNormal(2, "m", {100});
  const State before = state;
  state.grad_scale[0] = std::numeric_limits<float>::quiet_NaN();
  state.Update(Step(3), RandomNormal(2, "grad", {100}));
  EXPECT_EQ(state.m.values(), before.m.values());
  EXPECT_EQ(state.v.values(), before.v.values());
  EXPECT_EQ(state.weight.values(), before.weight.values());
  for (const BFloat16 value : state.compute.values()) EXPECT_EQ(value.bits, 0);
}

TEST(AdamWUpdate, AbsentArgumentsMeanDecayScaleOneAndNoCopy) {
  State whole(150);
  State short_form(150);
  const HostTensor<float> grad = RandomNormal(3, "grad", {150});
  whole.Update(Step(1), grad);
  Stream stream;
  AdamWUpdate(Step(1), {}, {}, grad.view(), short_form.m.view(),
              short_form.v.view(), short_form.weight.view(), {}, stream);
  stream.Synchronize();
  EXPECT_EQ(short_form.m.values(), whole.m.values());
  EXPECT_EQ(short_form.v.values(), whole.v.values());
  EXPECT_EQ(short_form.weight.values(), whole.weight.values());
}

float ClipScaleOf(double sum_of_squares, double max_norm) {
  const HostTensor<double> sum({1}, sum_of_squares);
  HostTensor<float> scale({1}, -7.0f);
  Stream stream;
  ClipScale(sum.view(), max_norm, scale.view(), stream);
  stream.Synchronize();
  return scale[0];
}

TEST(ClipScale, BringsTheNormDownToTheLimit) {
  EXPECT_EQ(ClipScaleOf(16.0, 1.0), 0.25f);
  EXPECT_EQ(ClipScaleOf(16.0, 4.0), 1.0f);
  EXPECT_EQ(ClipScaleOf(0.25, 1.0), 1.0f);
  EXPECT_EQ(ClipScaleOf(0.0, 1.0), 1.0f);
  EXPECT_EQ(ClipScaleOf(1e60, 1.0), 1e-30f);
  EXPECT_EQ(ClipScaleOf(16.0, 0.0), 1.0f);  // no clipping
}

TEST(ClipScale, IsNanForANormThatIsNotFinite) {
  for (const double max_norm : {0.0, 1.0}) {
    EXPECT_TRUE(std::isnan(
        ClipScaleOf(std::numeric_limits<double>::infinity(), max_norm)));
    EXPECT_TRUE(std::isnan(
        ClipScaleOf(std::numeric_limits<double>::quiet_NaN(), max_norm)));
  }
}

TEST(AdamWUpdate, CorrectsTheBiasLateInTraining) {
  // At step 10^6 the corrections are 1 to rounding; a product of powers in
  // float would have drifted.
  State state(1);
  state.m.values() = {0.5f};
  state.v.values() = {0.25f};
  state.weight.values() = {1.0f};
  AdamWStep step = Step(1000000);
  step.weight_decay = 0;
  state.Update(step, HostTensor<float>({1}, 0.5f));
  EXPECT_NEAR(state.weight[0], 1.0f - 0.02f, 1e-7f);
}

TEST(AdamWUpdate, PassesNanOn) {
  State state(1);
  state.Update(Step(1),
               HostTensor<float>({1}, std::numeric_limits<float>::quiet_NaN()));
  EXPECT_TRUE(std::isnan(state.weight[0]));
}

TEST(AdamWUpdateDeathTest, RefusesStepZero) {
  State state(1);
  Stream stream;  // a GPU cannot be opened in the child of a fork
  const HostTensor<float> grad({1});
  EXPECT_DEATH(state.Update(Step(0), grad, stream), "step");
}

}  // namespace
}  // namespace cubit
