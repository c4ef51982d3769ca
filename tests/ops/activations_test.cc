// SPDX-License-Identifier: Apache-2.0

#include "ops/activations.h"

#include <cmath>
#include <complex>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "ops/activations_reference.h"
#include "tests/ops/backend_budget.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::ComplexStepGradient;
using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::IsWithinBudget;
using ::cubit::testing::Poisoned;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::ToDouble;
using ::cubit::testing::Widen;

using ComplexVector = std::vector<std::complex<double>>;

TEST(GeluReference, DerivativeMatchesComplexStep) {
  for (const double x : {-3.0, -2.0, -0.3, 0.0, 0.01, 1.0, 4.0}) {
    EXPECT_TRUE(IsClose(
        {reference::GeluDerivative(x)},
        ComplexStepGradient(
            {x}, [](const ComplexVector& z) { return reference::Gelu(z[0]); }),
        1e-10))
        << x;
  }
}

TEST(SwiGluReference, BackwardMatchesComplexStep) {
  for (const double gate : {-30.0, -1.0, 0.0, 0.5, 3.0}) {
    const double up = 1.7 - gate;
    const auto gradient = reference::SwiGluBackward(0.8, gate, up);
    EXPECT_TRUE(IsClose({gradient.d_gate, gradient.d_up},
                        ComplexStepGradient({gate, up},
                                            [](const ComplexVector& z) {
                                              return 0.8 * reference::SwiGlu(
                                                               z[0], z[1]);
                                            }),
                        1e-10))
        << gate;
  }
}

template <typename T>
std::vector<T> GeluOf(const std::vector<T>& x) {
  std::vector<T> y;
  for (const T& value : x) y.push_back(reference::Gelu(value));
  return y;
}

template <typename T>
std::vector<T> GeluGradient(const std::vector<T>& d_y,
                            const std::vector<T>& x) {
  std::vector<T> d_x;
  for (size_t i = 0; i < x.size(); ++i) {
    d_x.push_back(d_y[i] * reference::GeluDerivative(x[i]));
  }
  return d_x;
}

class Gelu : public ::testing::TestWithParam<int64_t> {
 protected:
  int64_t n = GetParam();
  HostTensor<float> x = RandomNormal(1, "x", {n}, 3.0);
  HostTensor<float> d_y = RandomNormal(1, "d_y", {n});
  Stream stream;
};

TEST_P(Gelu, ForwardMatchesReferenceAndMayOverwrite) {
  HostTensor<float> y = Poisoned({n});
  GeluForward(x.view(), y.view(), stream);
  EXPECT_TRUE(IsWithinBudget(y.values(), GeluOf(x.values()),
                             GeluOf(ToDouble(x.values()))));
  GeluForward(x.view(), x.view(), stream);
  EXPECT_EQ(x.values(), y.values());
}

TEST_P(Gelu, BackwardMatchesReferenceAndMayOverwrite) {
  HostTensor<float> d_x = Poisoned({n});
  GeluBackward(d_y.view(), x.view(), d_x.view(), stream);
  EXPECT_TRUE(IsWithinBudget(
      d_x.values(), GeluGradient(d_y.values(), x.values()),
      GeluGradient(ToDouble(d_y.values()), ToDouble(x.values()))));
  GeluBackward(d_y.view(), x.view(), d_y.view(), stream);
  EXPECT_EQ(d_y.values(), d_x.values());
}

INSTANTIATE_TEST_SUITE_P(Sizes, Gelu,
                         ::testing::Values(1, 7, 1025, 16384, 40001));

TEST(GeluForward, KeepsRelativePrecisionInTheNegativeTail) {
  const HostTensor<float> x({3}, {-3.0f, -4.0f, -5.0f});
  HostTensor<float> y = Poisoned({3});
  Stream stream;
  GeluForward(x.view(), y.view(), stream);
  for (int64_t i = 0; i < 3; ++i) {
    const double v = static_cast<double>(x[i]);
    // 1 + tanh(u) = 2 / (1 + exp(-2u)), without the cancellation.
    const double want = v / (1 + std::exp(-2 * reference::GeluInner(v)));
    EXPECT_NEAR(static_cast<double>(y[i]), want, 2e-5 * std::abs(want)) << v;
  }
}

TEST(Gelu, IsFiniteOnLargeValues) {
  const HostTensor<float> x({4}, {-3e38f, -100.0f, 100.0f, 3e38f});
  const HostTensor<float> d_y({4}, 2.0f);
  HostTensor<float> y = Poisoned({4});
  HostTensor<float> d_x = Poisoned({4});
  Stream stream;
  GeluForward(x.view(), y.view(), stream);
  GeluBackward(d_y.view(), x.view(), d_x.view(), stream);
  EXPECT_EQ(y.values(), (std::vector<float>{0.0f, 0.0f, 100.0f, 3e38f}));
  EXPECT_EQ(d_x.values(), (std::vector<float>{0.0f, 0.0f, 2.0f, 2.0f}));
}

TEST(Gelu, PassesNanOn) {
  const HostTensor<float> x({1}, std::numeric_limits<float>::quiet_NaN());
  HostTensor<float> y({1});
  HostTensor<float> d_x({1});
  Stream stream;
  GeluForward(x.view(), y.view(), stream);
  GeluBackward(x.view(), x.view(), d_x.view(), stream);
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_TRUE(std::isnan(d_x[0]));
}

struct Size {
  int64_t num_rows;
  int64_t width;
};

template <typename T>
std::vector<T> SwiGluOf(const std::vector<T>& x, Size s) {
  std::vector<T> y;
  for (int64_t n = 0; n < s.num_rows; ++n) {
    const T* row = x.data() + n * 2 * s.width;
    for (int64_t i = 0; i < s.width; ++i) {
      y.push_back(reference::SwiGlu(row[i], row[s.width + i]));
    }
  }
  return y;
}

template <typename T>
std::vector<T> SwiGluGradientOf(const std::vector<T>& d_y,
                                const std::vector<T>& x, Size s) {
  std::vector<T> d_x(x.size());
  for (int64_t n = 0; n < s.num_rows; ++n) {
    for (int64_t i = 0; i < s.width; ++i) {
      const int64_t gate = n * 2 * s.width + i;
      const int64_t up = gate + s.width;
      const auto gradient =
          reference::SwiGluBackward(d_y[n * s.width + i], x[gate], x[up]);
      d_x[gate] = gradient.d_gate;
      d_x[up] = gradient.d_up;
    }
  }
  return d_x;
}

class SwiGlu : public ::testing::TestWithParam<Size> {
 protected:
  Size s = GetParam();
  HostTensor<float> x = RandomNormal(2, "x", {s.num_rows, 2 * s.width}, 3.0);
  HostTensor<float> d_y = RandomNormal(2, "d_y", {s.num_rows, s.width});
  Stream stream;
};

TEST_P(SwiGlu, ForwardMatchesReference) {
  HostTensor<float> y = Poisoned({s.num_rows, s.width});
  SwiGluForward(x.view(), y.view(), stream);
  EXPECT_TRUE(IsWithinBudget(y.values(), SwiGluOf(x.values(), s),
                             SwiGluOf(ToDouble(x.values()), s)));
}

TEST_P(SwiGlu, BackwardMatchesReferenceAndMayOverwrite) {
  HostTensor<float> d_x = Poisoned({s.num_rows, 2 * s.width});
  SwiGluBackward(d_y.view(), x.view(), d_x.view(), stream);
  EXPECT_TRUE(IsWithinBudget(
      d_x.values(), SwiGluGradientOf(d_y.values(), x.values(), s),
      SwiGluGradientOf(ToDouble(d_y.values()), ToDouble(x.values()), s)));
  SwiGluBackward(d_y.view(), x.view(), x.view(), stream);
  EXPECT_EQ(x.values(), d_x.values());
}

INSTANTIATE_TEST_SUITE_P(Sizes, SwiGlu,
                         ::testing::Values(Size{1, 1}, Size{3, 7},
                                           Size{2, 1027}, Size{200, 130}));

}  // namespace
}  // namespace cubit
