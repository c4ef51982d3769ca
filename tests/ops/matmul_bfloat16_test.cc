// SPDX-License-Identifier: Apache-2.0
//
// matmul.h with bf16 activations, as a GPU holds them.

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

#include "ops/activations_reference.h"
#include "ops/cuda/gelu_gradient.h"
#include "ops/matmul.h"
#include "ops/matmul_reference.h"
#include "tests/ops/backend_budget.h"
#include "tests/ops/device_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::cuda::GeluGradientWay;
using ::cubit::testing::DeviceArray;
using ::cubit::testing::IsWithinBFloat16Budget;
using ::cubit::testing::RandomBFloat16;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::Sum;
using ::cubit::testing::ToDouble;
using ::cubit::testing::Widen;

constexpr DType kHalf = DType::kBFloat16;
constexpr DType kFloat = DType::kFloat32;

// `lead`: elements before every operand (DeviceArray).
struct Size {
  int64_t num_rows;
  int64_t in;
  int64_t out;
  int64_t lead;
};

class BFloat16Linear : public ::testing::TestWithParam<Size> {
 protected:
  Size s = GetParam();
  std::vector<float> x = RandomBFloat16("x", s.num_rows* s.in);
  std::vector<float> weight = RandomBFloat16("weight", s.out* s.in, 0.2);
  std::vector<float> bias = RandomBFloat16("bias", s.out);
  std::vector<float> d_y = RandomBFloat16("d_y", s.num_rows* s.out);
  DeviceArray x_device{kHalf, {s.num_rows, s.in}, x, s.lead};
  DeviceArray weight_device{kHalf, {s.out, s.in}, weight, s.lead};
  DeviceArray bias_device{kHalf, {s.out}, bias, s.lead};
  DeviceArray d_y_device{kHalf, {s.num_rows, s.out}, d_y, s.lead};
  Stream stream;

  template <typename T>
  std::vector<T> Forward(bool with_bias, bool with_residual) const {
    const std::vector<T> none;
    return reference::LinearForward(
        Widen<T>(x), Widen<T>(weight), with_bias ? Widen<T>(bias) : none,
        with_residual ? Widen<T>(d_y) : none, s.in, s.out);
  }
  template <typename T>
  std::vector<T> Backward() const {
    return reference::LinearBackwardInput(Widen<T>(d_y), Widen<T>(weight), s.in,
                                          s.out);
  }
};

template <typename T>
std::vector<T> GeluOf(std::vector<T> values) {
  for (T& value : values) value = reference::Gelu(value);
  return values;
}

template <typename T>
std::vector<T> ThroughGelu(std::vector<T> d, const std::vector<T>& pre) {
  for (size_t i = 0; i < d.size(); ++i) {
    d[i] *= reference::GeluDerivative(pre[i]);
  }
  return d;
}

TEST_P(BFloat16Linear, Forward) {
  for (const bool with_bias : {false, true}) {
    for (const bool with_residual : {false, true}) {
      const DeviceArray y(kHalf, {s.num_rows, s.out}, s.lead);
      LinearForward(
          x_device.view(), weight_device.view(),
          with_bias ? ConstTensor(bias_device.view()) : ConstTensor(),
          with_residual ? ConstTensor(d_y_device.view()) : ConstTensor(),
          y.view(), stream);
      stream.Synchronize();
      EXPECT_TRUE(
          IsWithinBFloat16Budget(y, Forward<float>(with_bias, with_residual),
                                 Forward<double>(with_bias, with_residual)))
          << with_bias << with_residual;
    }
  }
}

TEST_P(BFloat16Linear, ForwardOverTheResidual) {
  const DeviceArray y(kHalf, {s.num_rows, s.out}, d_y, s.lead);
  LinearForward(x_device.view(), weight_device.view(), bias_device.view(),
                y.view(), y.view(), stream);
  stream.Synchronize();
  EXPECT_TRUE(IsWithinBFloat16Budget(y, Forward<float>(true, true),
                                     Forward<double>(true, true)));
}

TEST_P(BFloat16Linear, GeluForward) {
  for (const bool with_bias : {false, true}) {
    const DeviceArray pre(kHalf, {s.num_rows, s.out}, s.lead);
    const DeviceArray y(kHalf, {s.num_rows, s.out}, s.lead);
    LinearGeluForward(
        x_device.view(), weight_device.view(),
        with_bias ? ConstTensor(bias_device.view()) : ConstTensor(), pre.view(),
        y.view(), stream);
    stream.Synchronize();
    const std::vector<float> plain = Forward<float>(with_bias, false);
    const std::vector<double> exact = Forward<double>(with_bias, false);
    EXPECT_TRUE(IsWithinBFloat16Budget(pre, plain, exact)) << with_bias;
    EXPECT_TRUE(IsWithinBFloat16Budget(y, GeluOf(testing::Rounded(plain)),
                                       GeluOf(exact)))
        << with_bias;
  }
}

TEST_P(BFloat16Linear, BackwardInput) {
  const std::vector<float> plain = Backward<float>();
  const std::vector<double> exact = Backward<double>();
  const DeviceArray d_x(kHalf, {s.num_rows, s.in}, s.lead);
  LinearBackwardInput(d_y_device.view(), weight_device.view(),
                      /*accumulate=*/false, d_x.view(), stream);
  stream.Synchronize();
  EXPECT_TRUE(IsWithinBFloat16Budget(d_x, plain, exact));
  const DeviceArray added(kHalf, {s.num_rows, s.in}, x, s.lead);
  LinearBackwardInput(d_y_device.view(), weight_device.view(),
                      /*accumulate=*/true, added.view(), stream);
  stream.Synchronize();
  EXPECT_TRUE(
      IsWithinBFloat16Budget(added, Sum(x, plain), Sum(ToDouble(x), exact)));
}

constexpr GeluGradientWay kBothWays[] = {GeluGradientWay::kEpilogue,
                                         GeluGradientWay::kOwnPass};

TEST_P(BFloat16Linear, GeluBackwardInputEitherWay) {
  const std::vector<float> plain =
      ThroughGelu(testing::Rounded(Backward<float>()), x);
  const std::vector<double> exact =
      ThroughGelu(Backward<double>(), ToDouble(x));
  const DeviceArray d_bias(kFloat, {s.in}, std::vector<float>(s.in), s.lead);
  for (const GeluGradientWay way : kBothWays) {
    for (const bool with_bias : {false, true}) {
      const DeviceArray d_pre(kHalf, {s.num_rows, s.in}, s.lead);
      if (way == GeluGradientWay::kEpilogue &&
          !cuda::HasGeluEpilogue(x_device.view(), d_pre.view())) {
        continue;
      }
      cuda::LinearGeluBackwardInputBy(
          way, d_y_device.view(), weight_device.view(), x_device.view(),
          d_pre.view(), with_bias ? d_bias.view() : Tensor(), stream);
      stream.Synchronize();
      EXPECT_TRUE(IsWithinBFloat16Budget(d_pre, plain, exact))
          << static_cast<int>(way) << with_bias;
    }
  }
}

// Both ways sum what they store.
TEST_P(BFloat16Linear, GeluBackwardInputAddsColumnSumsToTheBias) {
  const std::vector<float> before = RandomNormal(5, "d_bias", {s.in}).values();
  for (const GeluGradientWay way : kBothWays) {
    const DeviceArray d_pre(kHalf, {s.num_rows, s.in}, s.lead);
    const DeviceArray d_bias(kFloat, {s.in}, before, s.lead);
    if (way == GeluGradientWay::kEpilogue &&
        !cuda::HasGeluEpilogue(x_device.view(), d_pre.view())) {
      continue;
    }
    cuda::LinearGeluBackwardInputBy(way, d_y_device.view(),
                                    weight_device.view(), x_device.view(),
                                    d_pre.view(), d_bias.view(), stream);
    stream.Synchronize();
    const std::vector<float> stored = d_pre.values();
    EXPECT_TRUE(IsWithinBFloat16Budget(
        d_bias, Sum(before, reference::ColumnSums(stored, s.in)),
        Sum(ToDouble(before), reference::ColumnSums(ToDouble(stored), s.in))))
        << static_cast<int>(way);
  }
}

TEST_P(BFloat16Linear, GeluBackwardInputFollowsTheRule) {
  const DeviceArray d_pre(kHalf, {s.num_rows, s.in}, s.lead);
  const DeviceArray wanted(kHalf, {s.num_rows, s.in}, s.lead);
  // None of the sizes is large enough to be timed.
  const GeluGradientWay way =
      cuda::HasGeluEpilogue(x_device.view(), d_pre.view())
          ? GeluGradientWay::kEpilogue
          : GeluGradientWay::kOwnPass;
  EXPECT_EQ(cuda::ChooseGeluGradientWay(d_y_device.view(), weight_device.view(),
                                        x_device.view(), d_pre.view(), stream),
            way);
  LinearGeluBackwardInput(d_y_device.view(), weight_device.view(),
                          x_device.view(), d_pre.view(), {}, stream);
  cuda::LinearGeluBackwardInputBy(way, d_y_device.view(), weight_device.view(),
                                  x_device.view(), wanted.view(), {}, stream);
  stream.Synchronize();
  EXPECT_EQ(d_pre.values(), wanted.values());
}

TEST_P(BFloat16Linear, BackwardWeightAddsToFloat) {
  const std::vector<float> weight_before =
      RandomNormal(3, "d_weight", {s.out * s.in}).values();
  const std::vector<float> bias_before =
      RandomNormal(3, "d_bias", {s.out}).values();
  const auto plain = reference::LinearBackwardWeight(d_y, x, s.in, s.out);
  const auto exact =
      reference::LinearBackwardWeight(ToDouble(d_y), ToDouble(x), s.in, s.out);
  const DeviceArray d_weight(kFloat, {s.out, s.in}, weight_before, s.lead);
  const DeviceArray d_bias(kFloat, {s.out}, bias_before, s.lead);
  LinearBackwardWeight(d_y_device.view(), x_device.view(), /*accumulate=*/true,
                       d_weight.view(), d_bias.view(), stream);
  stream.Synchronize();
  // Tensor cores add 16 rows at a time and drop what does not fit into fp32,
  // half an epsilon of the sum so far on average and always towards zero.
  const double truncation = static_cast<double>(s.num_rows) / 16 * 0x1p-24;
  EXPECT_TRUE(IsWithinBFloat16Budget(
      d_weight, Sum(weight_before, plain.d_weight),
      Sum(ToDouble(weight_before), exact.d_weight), truncation));
  EXPECT_TRUE(IsWithinBFloat16Budget(d_bias, Sum(bias_before, plain.d_bias),
                                     Sum(ToDouble(bias_before), exact.d_bias)));
  // The same without what was there.
  LinearBackwardWeight(d_y_device.view(), x_device.view(), /*accumulate=*/false,
                       d_weight.view(), {}, stream);
  stream.Synchronize();
  EXPECT_TRUE(IsWithinBFloat16Budget(d_weight, plain.d_weight, exact.d_weight,
                                     truncation));
}

// Odd sizes, and addresses aligned to two bytes; a multiple of 8; what fits the
// tensor cores, with remainders of their tiles; a long sum; column sums of
// several rows a warp, over the input (by 16 bytes and by 2) and over the
// result.
INSTANTIATE_TEST_SUITE_P(
    Sizes, BFloat16Linear,
    ::testing::Values(Size{1, 1, 1, 0}, Size{5, 3, 7, 1}, Size{130, 70, 67, 0},
                      Size{33, 72, 40, 8}, Size{33, 72, 40, 3},
                      Size{257, 136, 264, 0}, Size{2000, 24, 16, 0},
                      Size{1500, 4104, 8, 0}, Size{1500, 4104, 8, 1},
                      Size{1500, 8, 4104, 0}));

// Large enough that algorithms are timed; the choice may not show.
TEST(BFloat16LinearChoice, GivesTheSameBitsEveryTime) {
  constexpr int64_t kEdge = 1152;
  const Shape square = {kEdge, kEdge};
  const DeviceArray x(kHalf, square, RandomBFloat16("x", kEdge * kEdge));
  const DeviceArray w(kHalf, square, RandomBFloat16("w", kEdge * kEdge));
  const DeviceArray bias(kHalf, {kEdge}, RandomBFloat16("bias", kEdge));
  const std::vector<float> start =
      RandomNormal(4, "start", {kEdge * kEdge}).values();
  std::vector<std::vector<float>> first;
  for (int run = 0; run < 3; ++run) {
    const DeviceArray y(kHalf, square);
    const DeviceArray over(kHalf, square, start);
    const DeviceArray pre(kHalf, square);
    const DeviceArray gelu(kHalf, square);
    const DeviceArray by_epilogue(kHalf, square);
    const DeviceArray by_pass(kHalf, square);
    const DeviceArray d_bias_before(kFloat, {kEdge}, std::vector<float>(kEdge));
    const DeviceArray d_weight(kFloat, square, start);
    const DeviceArray d_bias(kFloat, {kEdge}, std::vector<float>(kEdge));
    Stream stream;
    LinearForward(x.view(), w.view(), bias.view(), {}, y.view(), stream);
    LinearForward(x.view(), w.view(), bias.view(), over.view(), over.view(),
                  stream);
    LinearGeluForward(x.view(), w.view(), bias.view(), pre.view(), gelu.view(),
                      stream);
    cuda::LinearGeluBackwardInputBy(GeluGradientWay::kEpilogue, x.view(),
                                    w.view(), pre.view(), by_epilogue.view(),
                                    d_bias_before.view(), stream);
    cuda::LinearGeluBackwardInputBy(GeluGradientWay::kOwnPass, x.view(),
                                    w.view(), pre.view(), by_pass.view(),
                                    d_bias_before.view(), stream);
    LinearBackwardWeight(x.view(), y.view(), /*accumulate=*/true,
                         d_weight.view(), d_bias.view(), stream);
    stream.Synchronize();
    const std::vector<const DeviceArray*> all = {
        &y,       &over,     &pre,    &gelu,         &by_epilogue,
        &by_pass, &d_weight, &d_bias, &d_bias_before};
    for (size_t i = 0; i < all.size(); ++i) {
      if (run == 0) {
        first.push_back(all[i]->values());
      } else {
        EXPECT_EQ(all[i]->values(), first[i]) << i;
      }
    }
  }
}

// Times in ms: equal ways, the border, and what was measured of 125M, 1.3B and
// 350M.
TEST(GeluGradientWay, LeavesTheEpilogueOnlyWhereItIsSlowerByFar) {
  const auto rule = cuda::GeluGradientWayByTimes;
  EXPECT_EQ(rule(1, 1), GeluGradientWay::kEpilogue);
  EXPECT_EQ(rule(1.14, 1), GeluGradientWay::kEpilogue);
  EXPECT_EQ(rule(1.16, 1), GeluGradientWay::kOwnPass);
  EXPECT_EQ(rule(0.297 + 0.048, 0.376), GeluGradientWay::kEpilogue);
  EXPECT_EQ(rule(0.897 + 0.064, 1.007), GeluGradientWay::kEpilogue);
  EXPECT_EQ(rule(0.855 + 0.064, 0.564), GeluGradientWay::kOwnPass);
}

// The first call times both ways; it may not show in the operands or the sums.
TEST(GeluGradientWay, TheTrialDoesNotShow) {
  constexpr int64_t kEdge = 1160;  // of no other test
  const Shape square = {kEdge, kEdge};
  const std::vector<float> pre_values = RandomBFloat16("pre", kEdge * kEdge);
  const DeviceArray d_y(kHalf, square, RandomBFloat16("d_y", kEdge * kEdge));
  const DeviceArray w(kHalf, square, RandomBFloat16("w", kEdge * kEdge));
  const DeviceArray pre(kHalf, square, pre_values);
  const std::vector<float> start = RandomNormal(5, "d_bias", {kEdge}).values();
  const DeviceArray d_pre(kHalf, square);
  const DeviceArray d_bias(kFloat, {kEdge}, start);
  const DeviceArray again(kHalf, square);
  const DeviceArray d_bias_again(kFloat, {kEdge}, start);
  Stream stream;
  LinearGeluBackwardInput(d_y.view(), w.view(), pre.view(), d_pre.view(),
                          d_bias.view(), stream);
  const GeluGradientWay way = cuda::ChooseGeluGradientWay(
      d_y.view(), w.view(), pre.view(), again.view(), stream);
  cuda::LinearGeluBackwardInputBy(way, d_y.view(), w.view(), pre.view(),
                                  again.view(), d_bias_again.view(), stream);
  stream.Synchronize();
  EXPECT_EQ(pre.values(), pre_values);
  EXPECT_EQ(d_pre.values(), again.values());
  EXPECT_EQ(d_bias.values(), d_bias_again.values());
}

// Beside other programs the first times may leave a kind of product with one
// algorithm, and no choice: so several kinds.
TEST(BFloat16LinearChoice, UnderLoadGivesTheSameBits) {
  int choices = 0;
  for (const int64_t edge : {1168, 1176, 1184, 1192}) {  // of no other test
    const Shape square = {edge, edge};
    const DeviceArray x(kHalf, square, RandomBFloat16("x", edge * edge));
    const DeviceArray w(kHalf, square, RandomBFloat16("w", edge * edge));
    const std::vector<float> start =
        RandomNormal(6, "start", {edge * edge}).values();
    std::vector<std::vector<float>> first;
    Stream stream;
    for (const bool under_load : {false, true, false}) {
      if (under_load) choices += ChooseProductsUnderLoad();
      const DeviceArray y(kHalf, square);
      const DeviceArray d_weight(kFloat, square, start);
      LinearForward(x.view(), w.view(), {}, {}, y.view(), stream);
      LinearBackwardWeight(x.view(), w.view(), /*accumulate=*/true,
                           d_weight.view(), {}, stream);
      stream.Synchronize();
      if (first.empty()) first = {y.values(), d_weight.values()};
      EXPECT_EQ(y.values(), first[0]) << edge << " " << under_load;
      EXPECT_EQ(d_weight.values(), first[1]) << edge << " " << under_load;
    }
  }
  EXPECT_GE(choices, 1);
}

}  // namespace
}  // namespace cubit
