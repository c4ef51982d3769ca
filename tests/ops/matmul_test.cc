// SPDX-License-Identifier: Apache-2.0

#include "ops/matmul.h"

#include <complex>
#include <vector>

#include "gtest/gtest.h"

#include "ops/activations_reference.h"
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

using Complex = std::complex<double>;
using ComplexVector = std::vector<Complex>;

struct Size {
  int64_t num_rows;
  int64_t in;
  int64_t out;
};

struct Problem {
  explicit Problem(Size s)
      : size(s),
        x(RandomNormal(1, "x", {s.num_rows, s.in})),
        weight(RandomNormal(1, "weight", {s.out, s.in})),
        bias(RandomNormal(1, "bias", {s.out})),
        d_y(RandomNormal(1, "d_y", {s.num_rows, s.out})) {}

  // y of the reference, in the precision of T.
  template <typename T>
  std::vector<T> Forward(bool with_bias, bool with_residual) const {
    const std::vector<T> none;
    return reference::LinearForward(
        Widen<T>(x.values()), Widen<T>(weight.values()),
        with_bias ? Widen<T>(bias.values()) : none,
        with_residual ? Widen<T>(d_y.values()) : none, size.in, size.out);
  }

  Size size;
  HostTensor<float> x;       // [N, in]
  HostTensor<float> weight;  // [out, in]
  HostTensor<float> bias;    // [out]
  HostTensor<float> d_y;     // [N, out]; also serves as the residual
};

TEST(LinearReference, BackwardMatchesComplexStep) {
  const Problem p({3, 5, 4});
  const std::vector<double> x = ToDouble(p.x.values());
  const std::vector<double> weight = ToDouble(p.weight.values());
  const std::vector<double> bias = ToDouble(p.bias.values());
  const std::vector<double> d_y = ToDouble(p.d_y.values());
  const auto loss = [&](const ComplexVector& x_step,
                        const ComplexVector& weight_step,
                        const ComplexVector& bias_step) {
    return Product(d_y, reference::LinearForward(x_step, weight_step, bias_step,
                                                 {}, p.size.in, p.size.out));
  };
  const ComplexVector zx(x.begin(), x.end());
  const ComplexVector zw(weight.begin(), weight.end());
  const ComplexVector zb(bias.begin(), bias.end());
  const auto gradient =
      reference::LinearBackwardWeight(d_y, x, p.size.in, p.size.out);
  EXPECT_TRUE(IsClose(
      reference::LinearBackwardInput(d_y, weight, p.size.in, p.size.out),
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

class Linear : public ::testing::TestWithParam<Size> {
 protected:
  // d_y^T x and the column sums of d_y, in the op's precision and exactly.
  auto PlainWeightGradient() const {
    return reference::LinearBackwardWeight(p.d_y.values(), p.x.values(),
                                           GetParam().in, GetParam().out);
  }
  auto ExactWeightGradient() const {
    return reference::LinearBackwardWeight(ToDouble(p.d_y.values()),
                                           ToDouble(p.x.values()),
                                           GetParam().in, GetParam().out);
  }

  Problem p{GetParam()};
  Stream stream;
};

TEST_P(Linear, ForwardMatchesReference) {
  const auto [num_rows, in, out] = GetParam();
  for (const bool with_bias : {false, true}) {
    for (const bool with_residual : {false, true}) {
      HostTensor<float> y = Poisoned({num_rows, out});
      LinearForward(p.x.view(), p.weight.view(),
                    with_bias ? ConstTensor(p.bias.view()) : ConstTensor(),
                    with_residual ? ConstTensor(p.d_y.view()) : ConstTensor(),
                    y.view(), stream);
      EXPECT_TRUE(IsWithinBudget(y.values(),
                                 p.Forward<float>(with_bias, with_residual),
                                 p.Forward<double>(with_bias, with_residual)))
          << with_bias << with_residual;
    }
  }
}

TEST_P(Linear, ForwardMayOverwriteTheResidual) {
  HostTensor<float> apart = Poisoned(p.d_y.shape());
  LinearForward(p.x.view(), p.weight.view(), p.bias.view(), p.d_y.view(),
                apart.view(), stream);
  HostTensor<float> over = p.d_y;
  LinearForward(p.x.view(), p.weight.view(), p.bias.view(), over.view(),
                over.view(), stream);
  EXPECT_EQ(over.values(), apart.values());
}

template <typename T>
std::vector<T> GeluOf(std::vector<T> x) {
  for (T& value : x) value = reference::Gelu(value);
  return x;
}

TEST_P(Linear, GeluForwardKeepsWhatIsBeforeIt) {
  const auto [num_rows, in, out] = GetParam();
  HostTensor<float> pre = Poisoned({num_rows, out});
  HostTensor<float> y = Poisoned({num_rows, out});
  LinearGeluForward(p.x.view(), p.weight.view(), p.bias.view(), pre.view(),
                    y.view(), stream);
  const std::vector<float> plain = p.Forward<float>(true, false);
  const std::vector<double> exact = p.Forward<double>(true, false);
  EXPECT_TRUE(IsWithinBudget(pre.values(), plain, exact));
  EXPECT_TRUE(IsWithinBudget(y.values(), GeluOf(plain), GeluOf(exact)));
}

template <typename T>
std::vector<T> ThroughGelu(std::vector<T> d, const std::vector<T>& pre) {
  for (size_t i = 0; i < d.size(); ++i) {
    d[i] *= reference::GeluDerivative(pre[i]);
  }
  return d;
}

TEST_P(Linear, GeluBackwardInputMatchesReference) {
  const auto [num_rows, in, out] = GetParam();
  HostTensor<float> d_pre = Poisoned({num_rows, in});
  LinearGeluBackwardInput(p.d_y.view(), p.weight.view(), p.x.view(),
                          d_pre.view(), {}, stream);
  const std::vector<float> plain =
      ThroughGelu(reference::LinearBackwardInput(p.d_y.values(),
                                                 p.weight.values(), in, out),
                  p.x.values());
  const std::vector<double> exact = ThroughGelu(
      reference::LinearBackwardInput(ToDouble(p.d_y.values()),
                                     ToDouble(p.weight.values()), in, out),
      ToDouble(p.x.values()));
  EXPECT_TRUE(IsWithinBudget(d_pre.values(), plain, exact));
  // The sums do not change what is summed.
  d_pre = Poisoned({num_rows, in});
  HostTensor<float> d_bias({in});
  LinearGeluBackwardInput(p.d_y.view(), p.weight.view(), p.x.view(),
                          d_pre.view(), d_bias.view(), stream);
  EXPECT_TRUE(IsWithinBudget(d_pre.values(), plain, exact));
}

TEST_P(Linear, GeluBackwardInputAddsColumnSumsToTheBias) {
  const auto [num_rows, in, out] = GetParam();
  HostTensor<float> d_pre = Poisoned({num_rows, in});
  HostTensor<float> d_bias = RandomNormal(5, "d_bias", {in});
  const std::vector<float> before = d_bias.values();
  LinearGeluBackwardInput(p.d_y.view(), p.weight.view(), p.x.view(),
                          d_pre.view(), d_bias.view(), stream);
  EXPECT_TRUE(IsWithinBudget(
      d_bias.values(), Sum(before, reference::ColumnSums(d_pre.values(), in)),
      Sum(ToDouble(before),
          reference::ColumnSums(ToDouble(d_pre.values()), in))));
}

TEST_P(Linear, BackwardInputReplacesOrAccumulates) {
  const auto [num_rows, in, out] = GetParam();
  const std::vector<float> plain = reference::LinearBackwardInput(
      p.d_y.values(), p.weight.values(), in, out);
  const std::vector<double> exact = reference::LinearBackwardInput(
      ToDouble(p.d_y.values()), ToDouble(p.weight.values()), in, out);
  HostTensor<float> d_x = Poisoned({num_rows, in});
  LinearBackwardInput(p.d_y.view(), p.weight.view(), /*accumulate=*/false,
                      d_x.view(), stream);
  EXPECT_TRUE(IsWithinBudget(d_x.values(), plain, exact));
  LinearBackwardInput(p.d_y.view(), p.weight.view(), /*accumulate=*/true,
                      d_x.view(), stream);
  EXPECT_TRUE(
      IsWithinBudget(d_x.values(), Sum(plain, plain), Sum(exact, exact)));
}

TEST_P(Linear, BackwardWeightReplaces) {
  const auto [num_rows, in, out] = GetParam();
  HostTensor<float> d_weight = Poisoned({out, in});
  HostTensor<float> d_bias = RandomNormal(2, "d_bias", {out});
  const std::vector<float> bias_before = d_bias.values();
  const auto plain = PlainWeightGradient();
  const auto exact = ExactWeightGradient();
  LinearBackwardWeight(p.d_y.view(), p.x.view(), /*accumulate=*/false,
                       d_weight.view(), d_bias.view(), stream);
  EXPECT_TRUE(
      IsWithinBudget(d_weight.values(), plain.d_weight, exact.d_weight));
  EXPECT_TRUE(IsWithinBudget(d_bias.values(), Sum(bias_before, plain.d_bias),
                             Sum(ToDouble(bias_before), exact.d_bias)));
}

TEST_P(Linear, BackwardWeightAccumulates) {
  const auto [num_rows, in, out] = GetParam();
  HostTensor<float> d_weight = RandomNormal(2, "d_weight", {out, in});
  HostTensor<float> d_bias = RandomNormal(2, "d_bias", {out});
  const std::vector<float> weight_before = d_weight.values();
  const std::vector<float> bias_before = d_bias.values();
  const auto plain = PlainWeightGradient();
  const auto exact = ExactWeightGradient();
  LinearBackwardWeight(p.d_y.view(), p.x.view(), /*accumulate=*/true,
                       d_weight.view(), d_bias.view(), stream);
  EXPECT_TRUE(IsWithinBudget(d_weight.values(),
                             Sum(weight_before, plain.d_weight),
                             Sum(ToDouble(weight_before), exact.d_weight)));
  EXPECT_TRUE(IsWithinBudget(d_bias.values(), Sum(bias_before, plain.d_bias),
                             Sum(ToDouble(bias_before), exact.d_bias)));
  const std::vector<float> weight_with_bias = d_weight.values();
  d_weight.values() = weight_before;
  LinearBackwardWeight(p.d_y.view(), p.x.view(), /*accumulate=*/true,
                       d_weight.view(), {}, stream);
  EXPECT_EQ(d_weight.values(), weight_with_bias);
}

// One element; odd sizes; more than one block in each direction, with a
// remainder; a long sum; blocks of every edge; column sums of several rows a
// warp, over the input and over the result.
INSTANTIATE_TEST_SUITE_P(
    Sizes, Linear,
    ::testing::Values(Size{1, 1, 1}, Size{5, 3, 7}, Size{1, 65, 129},
                      Size{130, 70, 67}, Size{257, 33, 300}, Size{700, 16, 20},
                      Size{1030, 3, 1025}, Size{700, 4100, 2},
                      Size{700, 2, 4100}));

TEST(LinearForward, AcceptsNoRows) {
  const Problem p({0, 3, 2});
  HostTensor<float> y({0, 2});
  Stream stream;
  LinearForward(p.x.view(), p.weight.view(), p.bias.view(), {}, y.view(),
                stream);
}

TEST(LinearBackwardWeight, OfNoRowsIsZero) {
  const Problem p({0, 3, 2});
  HostTensor<float> d_weight = RandomNormal(3, "d_weight", {2, 3});
  HostTensor<float> d_bias = RandomNormal(3, "d_bias", {2});
  const std::vector<float> weight_before = d_weight.values();
  const std::vector<float> bias_before = d_bias.values();
  Stream stream;
  LinearBackwardWeight(p.d_y.view(), p.x.view(), /*accumulate=*/true,
                       d_weight.view(), d_bias.view(), stream);
  EXPECT_EQ(d_weight.values(), weight_before);
  EXPECT_EQ(d_bias.values(), bias_before);
  LinearBackwardWeight(p.d_y.view(), p.x.view(), /*accumulate=*/false,
                       d_weight.view(), d_bias.view(), stream);
  stream.Synchronize();
  EXPECT_EQ(d_weight.values(), std::vector<float>(weight_before.size()));
  EXPECT_EQ(d_bias.values(), bias_before);
}

TEST(LinearGeluBackwardInput, OfNoRowsAddsNothing) {
  const Problem p({0, 3, 2});
  HostTensor<float> d_pre({0, 3});
  HostTensor<float> d_bias = RandomNormal(3, "d_bias", {3});
  const std::vector<float> before = d_bias.values();
  Stream stream;
  LinearGeluBackwardInput(p.d_y.view(), p.weight.view(), p.x.view(),
                          d_pre.view(), d_bias.view(), stream);
  EXPECT_EQ(d_bias.values(), before);
}

TEST(LinearForward, GivesTheSameBitsTwice) {
  const Problem p({300, 64, 200});
  HostTensor<float> first = Poisoned({300, 200});
  HostTensor<float> second = Poisoned({300, 200});
  Stream stream;
  for (HostTensor<float>* y : {&first, &second}) {
    LinearForward(p.x.view(), p.weight.view(), p.bias.view(), {}, y->view(),
                  stream);
  }
  EXPECT_EQ(first.values(), second.values());
}

TEST(LinearForwardDeathTest, RefusesShapesThatDisagree) {
  const Problem p({2, 3, 4});
  HostTensor<float> y = Poisoned({2, 3});
  Stream stream;
  EXPECT_DEATH(
      LinearForward(p.x.view(), p.weight.view(), {}, {}, y.view(), stream),
      "wanted \\[2, 4\\], got \\[2, 3\\]");
}

TEST(LinearGeluBackwardInputDeathTest, RefusesABiasOfTheWrongWidth) {
  const Problem p({2, 3, 4});
  HostTensor<float> d_pre = Poisoned({2, 3});
  HostTensor<float> d_bias({4});
  Stream stream;
  EXPECT_DEATH(
      LinearGeluBackwardInput(p.d_y.view(), p.weight.view(), p.x.view(),
                              d_pre.view(), d_bias.view(), stream),
      "wanted \\[3\\], got \\[4\\]");
}

}  // namespace
}  // namespace cubit
