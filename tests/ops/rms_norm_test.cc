// SPDX-License-Identifier: Apache-2.0

#include "ops/rms_norm.h"

#include <cmath>
#include <complex>
#include <vector>

#include "gtest/gtest.h"

#include "ops/matmul_reference.h"
#include "ops/rms_norm_reference.h"
#include "tests/ops/backend_budget.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::ComplexStepGradient;
using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::IsWithinBudget;
using ::cubit::testing::Poisoned;
using ::cubit::testing::Product;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::Sum;
using ::cubit::testing::ToDouble;

using ComplexVector = std::vector<std::complex<double>>;

constexpr float kEps = 1e-6f;
constexpr double kEpsDouble = static_cast<double>(kEps);

struct Size {
  int64_t num_rows;
  int64_t dim;
};

struct Problem {
  explicit Problem(Size s)
      : x(RandomNormal(1, "x", {s.num_rows, s.dim}, 3.0)),
        weight(RandomNormal(1, "weight", {s.dim})),
        d_y(RandomNormal(1, "d_y", {s.num_rows, s.dim})) {}

  HostTensor<float> x;       // [N, D]
  HostTensor<float> weight;  // [D]
  HostTensor<float> d_y;     // [N, D]
};

TEST(RmsNormReference, BackwardMatchesComplexStep) {
  const Problem p({3, 7});
  const std::vector<double> x = ToDouble(p.x.values());
  const std::vector<double> weight = ToDouble(p.weight.values());
  const std::vector<double> d_y = ToDouble(p.d_y.values());
  const auto loss = [&](const ComplexVector& x_step,
                        const ComplexVector& weight_step) {
    return Product(
        d_y, reference::RmsNormForward(x_step, weight_step, kEpsDouble).y);
  };
  const ComplexVector zx(x.begin(), x.end());
  const ComplexVector zw(weight.begin(), weight.end());
  const auto forward = reference::RmsNormForward(x, weight, kEpsDouble);
  const auto gradient =
      reference::RmsNormBackward(d_y, x, weight, forward.rstd);
  EXPECT_TRUE(
      IsClose(gradient.d_x,
              ComplexStepGradient(
                  x, [&](const ComplexVector& z) { return loss(z, zw); }),
              1e-10));
  EXPECT_TRUE(
      IsClose(gradient.d_weight,
              ComplexStepGradient(
                  weight, [&](const ComplexVector& z) { return loss(zx, z); }),
              1e-10));
}

class RmsNorm : public ::testing::TestWithParam<Size> {
 protected:
  Problem p{GetParam()};
  Stream stream;
};

TEST_P(RmsNorm, ForwardMatchesReference) {
  const auto [num_rows, dim] = GetParam();
  const auto plain =
      reference::RmsNormForward(p.x.values(), p.weight.values(), kEpsDouble);
  const auto exact = reference::RmsNormForward(
      ToDouble(p.x.values()), ToDouble(p.weight.values()), kEpsDouble);
  HostTensor<float> y = Poisoned({num_rows, dim});
  HostTensor<float> rstd = Poisoned({num_rows});
  RmsNormForward(p.x.view(), p.weight.view(), kEps, y.view(), rstd.view(),
                 stream);
  EXPECT_TRUE(IsWithinBudget(y.values(), plain.y, exact.y));
  EXPECT_TRUE(IsWithinBudget(rstd.values(), plain.rstd, exact.rstd));
}

TEST_P(RmsNorm, BackwardAddsToEveryGradient) {
  const auto [num_rows, dim] = GetParam();
  const auto forward_plain =
      reference::RmsNormForward(p.x.values(), p.weight.values(), kEpsDouble);
  const auto forward_exact = reference::RmsNormForward(
      ToDouble(p.x.values()), ToDouble(p.weight.values()), kEpsDouble);
  const auto plain = reference::RmsNormBackward(
      p.d_y.values(), p.x.values(), p.weight.values(), forward_plain.rstd);
  const auto exact = reference::RmsNormBackward(
      ToDouble(p.d_y.values()), ToDouble(p.x.values()),
      ToDouble(p.weight.values()), forward_exact.rstd);
  HostTensor<float> y = Poisoned({num_rows, dim});
  HostTensor<float> rstd = Poisoned({num_rows});
  RmsNormForward(p.x.view(), p.weight.view(), kEps, y.view(), rstd.view(),
                 stream);
  HostTensor<float> d_x = RandomNormal(2, "d_x", {num_rows, dim});
  HostTensor<float> d_weight = RandomNormal(2, "d_weight", {dim});
  HostTensor<float> d_x_sums = RandomNormal(2, "d_x_sums", {dim});
  const std::vector<float> d_x_before = d_x.values();
  const std::vector<float> d_weight_before = d_weight.values();
  const std::vector<float> d_x_sums_before = d_x_sums.values();
  RmsNormBackward(p.d_y.view(), p.x.view(), p.weight.view(), rstd.view(),
                  d_x.view(), d_weight.view(), d_x_sums.view(), stream);
  EXPECT_TRUE(IsWithinBudget(d_x.values(), Sum(d_x_before, plain.d_x),
                             Sum(ToDouble(d_x_before), exact.d_x)));
  EXPECT_TRUE(IsWithinBudget(d_weight.values(),
                             Sum(d_weight_before, plain.d_weight),
                             Sum(ToDouble(d_weight_before), exact.d_weight)));
  EXPECT_TRUE(IsWithinBudget(
      d_x_sums.values(),
      Sum(d_x_sums_before, reference::ColumnSums(d_x.values(), dim)),
      Sum(ToDouble(d_x_sums_before),
          reference::ColumnSums(ToDouble(d_x.values()), dim))));
}

INSTANTIATE_TEST_SUITE_P(Sizes, RmsNorm,
                         ::testing::Values(Size{1, 2}, Size{3, 3}, Size{5, 37},
                                           Size{1, 768}, Size{300, 131},
                                           Size{2, 4099}));

// A row of one element is normalised to its sign, and its gradient is what
// rounding leaves of terms that cancel.
TEST(RmsNorm, OneElementBecomesItsSign) {
  const HostTensor<float> x({2, 1}, {-3.0f, 5.0f});
  const HostTensor<float> weight({1}, 1.5f);
  const HostTensor<float> d_y({2, 1}, {0.7f, 0.3f});
  HostTensor<float> y = Poisoned({2, 1});
  HostTensor<float> rstd = Poisoned({2});
  HostTensor<float> d_x({2, 1}, 0.25f);
  HostTensor<float> d_weight({1}, 1.0f);
  Stream stream;
  RmsNormForward(x.view(), weight.view(), kEps, y.view(), rstd.view(), stream);
  RmsNormBackward(d_y.view(), x.view(), weight.view(), rstd.view(), d_x.view(),
                  d_weight.view(), {}, stream);
  EXPECT_TRUE(IsClose(ToDouble(y.values()), {-1.5, 1.5}, 3e-7));
  EXPECT_TRUE(IsClose(ToDouble(d_x.values()), {0.25, 0.25}, 1e-6));
  EXPECT_TRUE(IsClose(ToDouble(d_weight.values()), {1.0 - 0.7 + 0.3}, 1e-6));
}

TEST(RmsNormForward, RowsOfZerosStayZero) {
  const HostTensor<float> x({2, 9}, 0.0f);
  const HostTensor<float> weight = RandomNormal(3, "weight", {9});
  HostTensor<float> y = Poisoned({2, 9});
  HostTensor<float> rstd = Poisoned({2});
  Stream stream;
  RmsNormForward(x.view(), weight.view(), kEps, y.view(), rstd.view(), stream);
  for (const float value : y.values()) EXPECT_EQ(value, 0.0f);
  EXPECT_FLOAT_EQ(rstd[0], 1.0f / std::sqrt(kEps));
}

TEST(RmsNormForward, DoesNotOverflowOnLargeValues) {
  const HostTensor<float> x({1, 4}, 1e25f);  // the square is over float's range
  const HostTensor<float> weight({4}, 2.0f);
  HostTensor<float> y = Poisoned({1, 4});
  HostTensor<float> rstd = Poisoned({1});
  Stream stream;
  RmsNormForward(x.view(), weight.view(), kEps, y.view(), rstd.view(), stream);
  for (const float value : y.values()) EXPECT_FLOAT_EQ(value, 2.0f);
}

}  // namespace
}  // namespace cubit
