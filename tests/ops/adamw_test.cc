// SPDX-License-Identifier: Apache-2.0

#include "ops/adamw.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "ops/adamw_reference.h"
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
  s.grad_scale = 0.25f;
  s.step = step;
  return s;
}

struct State {
  explicit State(int64_t n)
      : m({n}), v({n}), weight(RandomNormal(1, "weight", {n})) {}

  HostTensor<float> m;
  HostTensor<float> v;
  HostTensor<float> weight;

  void Update(const AdamWStep& step, const HostTensor<float>& grad) {
    Stream stream;
    AdamWUpdate(step, grad.view(), m.view(), v.view(), weight.view(), stream);
  }
};

// The same run by the reference.
template <typename T>
struct ReferenceState {
  explicit ReferenceState(const State& state)
      : m(testing::Widen<T>(state.m.values())),
        v(testing::Widen<T>(state.v.values())),
        weight(testing::Widen<T>(state.weight.values())) {}

  void Update(const AdamWStep& step, const HostTensor<float>& grad) {
    for (size_t i = 0; i < m.size(); ++i) {
      const auto updated = reference::AdamWUpdate<T>(
          step, static_cast<T>(grad.values()[i]), {m[i], v[i], weight[i]});
      m[i] = updated.m;
      v[i] = updated.v;
      weight[i] = updated.weight;
    }
  }

  std::vector<T> m;
  std::vector<T> v;
  std::vector<T> weight;
};

class AdamW : public ::testing::TestWithParam<int64_t> {};

TEST_P(AdamW, FollowsTheReferenceOverManySteps) {
  State state(GetParam());
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
}

INSTANTIATE_TEST_SUITE_P(Sizes, AdamW, ::testing::Values(1, 19, 16384, 20001));

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
  AdamWStep step = Step(1);
  scaled.Update(step, HostTensor<float>({1}, 4.0f));
  step.grad_scale = 1;
  plain.Update(step, HostTensor<float>({1}, 1.0f));
  EXPECT_EQ(scaled.m.values(), plain.m.values());
  EXPECT_EQ(scaled.v.values(), plain.v.values());
  EXPECT_EQ(scaled.weight.values(), plain.weight.values());
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
  step.grad_scale = 1;
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
  EXPECT_DEATH(state.Update(Step(0), HostTensor<float>({1})), "step");
}

}  // namespace
}  // namespace cubit
