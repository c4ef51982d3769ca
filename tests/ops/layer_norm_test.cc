// SPDX-License-Identifier: Apache-2.0

#include "ops/layer_norm.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <vector>

#include "gtest/gtest.h"

#include "ops/layer_norm_reference.h"
#include "ops/matmul_reference.h"
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
using ::cubit::testing::Widen;

using ComplexVector = std::vector<std::complex<double>>;

constexpr float kEps = 1e-5f;
constexpr double kEpsDouble = static_cast<double>(kEps);

struct Size {
  int64_t num_rows;
  int64_t dim;
};

struct Problem {
  explicit Problem(Size s)
      : x(RandomNormal(1, "x", {s.num_rows, s.dim}, 2.0)),
        weight(RandomNormal(1, "weight", {s.dim})),
        bias(RandomNormal(1, "bias", {s.dim})),
        d_y(RandomNormal(1, "d_y", {s.num_rows, s.dim})) {
    for (float& value : x.values()) value += 1.5f;
  }

  HostTensor<float> x;       // [N, D]
  HostTensor<float> weight;  // [D]
  HostTensor<float> bias;    // [D]
  HostTensor<float> d_y;     // [N, D]
};

TEST(LayerNormReference, BackwardMatchesComplexStep) {
  const Problem p({3, 7});
  const std::vector<double> x = ToDouble(p.x.values());
  const std::vector<double> weight = ToDouble(p.weight.values());
  const std::vector<double> bias = ToDouble(p.bias.values());
  const std::vector<double> d_y = ToDouble(p.d_y.values());
  const auto loss = [&](const ComplexVector& x_step,
                        const ComplexVector& weight_step,
                        const ComplexVector& bias_step) {
    return Product(d_y, reference::LayerNormForward(x_step, weight_step,
                                                    bias_step, kEpsDouble)
                            .y);
  };
  const ComplexVector zx(x.begin(), x.end());
  const ComplexVector zw(weight.begin(), weight.end());
  const ComplexVector zb(bias.begin(), bias.end());
  const auto forward = reference::LayerNormForward(x, weight, bias, kEpsDouble);
  const auto gradient =
      reference::LayerNormBackward(d_y, x, weight, forward.mean, forward.rstd);
  EXPECT_TRUE(
      IsClose(gradient.d_x,
              ComplexStepGradient(
                  x, [&](const ComplexVector& z) { return loss(z, zw, zb); }),
              1e-10));
  EXPECT_TRUE(IsClose(
      gradient.d_weight,
      ComplexStepGradient(
          weight, [&](const ComplexVector& z) { return loss(zx, z, zb); }),
      1e-10));
  EXPECT_TRUE(IsClose(
      gradient.d_bias,
      ComplexStepGradient(
          bias, [&](const ComplexVector& z) { return loss(zx, zw, z); }),
      1e-10));
}

class LayerNorm : public ::testing::TestWithParam<Size> {
 protected:
  Problem p{GetParam()};
  Stream stream;
};

TEST_P(LayerNorm, ForwardMatchesReference) {
  const auto [num_rows, dim] = GetParam();
  const auto plain = reference::LayerNormForward(
      p.x.values(), p.weight.values(), p.bias.values(), kEpsDouble);
  const auto exact = reference::LayerNormForward(
      ToDouble(p.x.values()), ToDouble(p.weight.values()),
      ToDouble(p.bias.values()), kEpsDouble);
  HostTensor<float> y = Poisoned({num_rows, dim});
  HostTensor<float> mean = Poisoned({num_rows});
  HostTensor<float> rstd = Poisoned({num_rows});
  LayerNormForward(p.x.view(), p.weight.view(), p.bias.view(), kEps, y.view(),
                   mean.view(), rstd.view(), stream);
  EXPECT_TRUE(IsWithinBudget(y.values(), plain.y, exact.y));
  EXPECT_TRUE(IsWithinBudget(mean.values(), plain.mean, exact.mean));
  EXPECT_TRUE(IsWithinBudget(rstd.values(), plain.rstd, exact.rstd));
}

TEST_P(LayerNorm, ForwardWithoutBiasMayOverwriteItsInput) {
  const auto [num_rows, dim] = GetParam();
  const auto plain = reference::LayerNormForward(
      p.x.values(), p.weight.values(), {}, kEpsDouble);
  const auto exact = reference::LayerNormForward(
      ToDouble(p.x.values()), ToDouble(p.weight.values()), {}, kEpsDouble);
  HostTensor<float> mean = Poisoned({num_rows});
  HostTensor<float> rstd = Poisoned({num_rows});
  LayerNormForward(p.x.view(), p.weight.view(), {}, kEps, p.x.view(),
                   mean.view(), rstd.view(), stream);
  EXPECT_TRUE(IsWithinBudget(p.x.values(), plain.y, exact.y));
}

TEST_P(LayerNorm, BackwardAddsToEveryGradient) {
  const auto [num_rows, dim] = GetParam();
  const auto forward_plain = reference::LayerNormForward(
      p.x.values(), p.weight.values(), p.bias.values(), kEpsDouble);
  const auto forward_exact = reference::LayerNormForward(
      ToDouble(p.x.values()), ToDouble(p.weight.values()),
      ToDouble(p.bias.values()), kEpsDouble);
  const auto plain = reference::LayerNormBackward(
      p.d_y.values(), p.x.values(), p.weight.values(), forward_plain.mean,
      forward_plain.rstd);
  const auto exact = reference::LayerNormBackward(
      ToDouble(p.d_y.values()), ToDouble(p.x.values()),
      ToDouble(p.weight.values()), forward_exact.mean, forward_exact.rstd);
  HostTensor<float> y = Poisoned({num_rows, dim});
  HostTensor<float> mean = Poisoned({num_rows});
  HostTensor<float> rstd = Poisoned({num_rows});
  LayerNormForward(p.x.view(), p.weight.view(), p.bias.view(), kEps, y.view(),
                   mean.view(), rstd.view(), stream);
  HostTensor<float> d_x = RandomNormal(2, "d_x", {num_rows, dim});
  HostTensor<float> d_weight = RandomNormal(2, "d_weight", {dim});
  HostTensor<float> d_bias = RandomNormal(2, "d_bias", {dim});
  HostTensor<float> d_x_sums = RandomNormal(2, "d_x_sums", {dim});
  const std::vector<float> d_x_before = d_x.values();
  const std::vector<float> d_weight_before = d_weight.values();
  const std::vector<float> d_bias_before = d_bias.values();
  const std::vector<float> d_x_sums_before = d_x_sums.values();
  LayerNormBackward(p.d_y.view(), p.x.view(), p.weight.view(), mean.view(),
                    rstd.view(), d_x.view(), d_weight.view(), d_bias.view(),
                    d_x_sums.view(), stream);
  EXPECT_TRUE(IsWithinBudget(d_x.values(), Sum(d_x_before, plain.d_x),
                             Sum(ToDouble(d_x_before), exact.d_x)));
  EXPECT_TRUE(IsWithinBudget(d_weight.values(),
                             Sum(d_weight_before, plain.d_weight),
                             Sum(ToDouble(d_weight_before), exact.d_weight)));
  EXPECT_TRUE(IsWithinBudget(d_bias.values(), Sum(d_bias_before, plain.d_bias),
                             Sum(ToDouble(d_bias_before), exact.d_bias)));
  EXPECT_TRUE(IsWithinBudget(
      d_x_sums.values(),
      Sum(d_x_sums_before, reference::ColumnSums(d_x.values(), dim)),
      Sum(ToDouble(d_x_sums_before),
          reference::ColumnSums(ToDouble(d_x.values()), dim))));
  const std::vector<float> d_x_with_sums = d_x.values();
  const std::vector<float> d_weight_with_bias = d_weight.values();
  d_x.values() = d_x_before;
  d_weight.values() = d_weight_before;
  LayerNormBackward(p.d_y.view(), p.x.view(), p.weight.view(), mean.view(),
                    rstd.view(), d_x.view(), d_weight.view(), {}, {}, stream);
  EXPECT_EQ(d_x.values(), d_x_with_sums);
  EXPECT_EQ(d_weight.values(), d_weight_with_bias);
}

// Rows shorter than one vector, odd, over one piece of columns; more rows than
// one piece.
INSTANTIATE_TEST_SUITE_P(Sizes, LayerNorm,
                         ::testing::Values(Size{1, 3}, Size{5, 37},
                                           Size{1, 768}, Size{300, 131},
                                           Size{2, 4099}));

// Rows of one and two elements are normalised to 0 and +-1, and their gradient
// is what rounding leaves of terms that cancel.
TEST(LayerNormBackward, TinyRowsPassAlmostNoGradient) {
  for (const int64_t dim : {1, 2}) {
    const Problem p({3, dim});
    const auto forward = reference::LayerNormForward(
        p.x.values(), p.weight.values(), {}, kEpsDouble);
    const HostTensor<float> mean({3}, forward.mean);
    const HostTensor<float> rstd({3}, forward.rstd);
    HostTensor<float> d_x({3, dim});
    HostTensor<float> d_weight({dim});
    Stream stream;
    LayerNormBackward(p.d_y.view(), p.x.view(), p.weight.view(), mean.view(),
                      rstd.view(), d_x.view(), d_weight.view(), {}, {}, stream);
    const auto exact = reference::LayerNormBackward(
        ToDouble(p.d_y.values()), ToDouble(p.x.values()),
        ToDouble(p.weight.values()), ToDouble(mean.values()),
        ToDouble(rstd.values()));
    for (int64_t n = 0; n < 3; ++n) {
      double largest = 0;
      for (int64_t i = 0; i < dim; ++i) {
        const float term = p.d_y[n * dim + i] * p.weight[i] * rstd[n];
        largest = std::max(largest, static_cast<double>(std::abs(term)));
      }
      for (int64_t i = n * dim; i < (n + 1) * dim; ++i) {
        EXPECT_NEAR(static_cast<double>(d_x[i]), exact.d_x[i], 5e-7 * largest);
      }
    }
  }
}

TEST(LayerNormForward, OneElementBecomesTheBias) {
  const HostTensor<float> x({2, 1}, {3.0f, -1e30f});
  const HostTensor<float> weight({1}, 2.0f);
  const HostTensor<float> bias({1}, 0.5f);
  HostTensor<float> y = Poisoned({2, 1});
  HostTensor<float> mean = Poisoned({2});
  HostTensor<float> rstd = Poisoned({2});
  Stream stream;
  LayerNormForward(x.view(), weight.view(), bias.view(), kEps, y.view(),
                   mean.view(), rstd.view(), stream);
  EXPECT_EQ(y.values(), (std::vector<float>{0.5f, 0.5f}));
  EXPECT_EQ(mean.values(), x.values());
}

TEST(LayerNormForward, KeepsRowsWithALargeMean) {
  HostTensor<float> x = RandomNormal(4, "x", {2, 256});
  for (float& value : x.values()) value = value + 1000.0f;
  const HostTensor<float> weight({256}, 1.0f);
  HostTensor<float> y = Poisoned({2, 256});
  HostTensor<float> mean = Poisoned({2});
  HostTensor<float> rstd = Poisoned({2});
  Stream stream;
  LayerNormForward(x.view(), weight.view(), {}, kEps, y.view(), mean.view(),
                   rstd.view(), stream);
  const auto exact = reference::LayerNormForward(
      ToDouble(x.values()), ToDouble(weight.values()), {}, kEpsDouble);
  // Half an ulp of the mean, 3e-5, moves every element.
  EXPECT_TRUE(IsClose(ToDouble(y.values()), exact.y, 6e-5));
  EXPECT_TRUE(IsClose(ToDouble(rstd.values()), exact.rstd, 1e-6));
}

TEST(LayerNormForward, ConstantRowsBecomeTheBias) {
  const HostTensor<float> x({2, 19}, 3.0f);
  const HostTensor<float> weight = RandomNormal(5, "weight", {19});
  const HostTensor<float> bias = RandomNormal(5, "bias", {19});
  HostTensor<float> y = Poisoned({2, 19});
  HostTensor<float> mean = Poisoned({2});
  HostTensor<float> rstd = Poisoned({2});
  Stream stream;
  LayerNormForward(x.view(), weight.view(), bias.view(), kEps, y.view(),
                   mean.view(), rstd.view(), stream);
  for (int64_t i = 0; i < 2 * 19; ++i) EXPECT_EQ(y[i], bias[i % 19]);
  EXPECT_FLOAT_EQ(rstd[0], 1.0f / std::sqrt(kEps));
}

TEST(LayerNormBackward, IsLinearInTheGradient) {
  const Problem p({4, 33});
  const auto forward = reference::LayerNormForward(
      p.x.values(), p.weight.values(), p.bias.values(), kEpsDouble);
  const HostTensor<float> mean({4}, forward.mean);
  const HostTensor<float> rstd({4}, forward.rstd);
  HostTensor<float> doubled = p.d_y;
  for (float& value : doubled.values()) value *= 2.0f;
  HostTensor<float> d_x({4, 33});
  HostTensor<float> d_x_doubled({4, 33});
  HostTensor<float> d_weight({33});
  HostTensor<float> d_bias({33});
  Stream stream;
  LayerNormBackward(p.d_y.view(), p.x.view(), p.weight.view(), mean.view(),
                    rstd.view(), d_x.view(), d_weight.view(), d_bias.view(), {},
                    stream);
  LayerNormBackward(doubled.view(), p.x.view(), p.weight.view(), mean.view(),
                    rstd.view(), d_x_doubled.view(), d_weight.view(),
                    d_bias.view(), {}, stream);
  // A power of two scales every intermediate value exactly.
  for (int64_t i = 0; i < 4 * 33; ++i) {
    EXPECT_EQ(d_x_doubled[i], 2.0f * d_x[i]);
  }
}

}  // namespace
}  // namespace cubit
