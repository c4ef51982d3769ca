// SPDX-License-Identifier: Apache-2.0

#include "ops/elementwise.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "ops/elementwise_reference.h"
#include "runtime/bfloat16.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::HostTensor;
using ::cubit::testing::Poisoned;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::ToDouble;

double SumOfSquaresOf(const HostTensor<float>& x) {
  HostTensor<double> result({1}, std::nan(""));
  Stream stream;
  SumOfSquares(x.view(), result.view(), stream);
  return result[0];
}

class Elementwise : public ::testing::TestWithParam<int64_t> {
 protected:
  int64_t n = GetParam();
  HostTensor<float> a = RandomNormal(1, "a", {n});
  HostTensor<float> b = RandomNormal(1, "b", {n});
  Stream stream;
};

TEST_P(Elementwise, AddMatchesReferenceAndMayOverwriteEither) {
  const std::vector<float> want = reference::Add(a.values(), b.values());
  HostTensor<float> y = Poisoned({n});
  Add(a.view(), b.view(), y.view(), stream);
  EXPECT_EQ(y.values(), want);
  HostTensor<float> left = a;
  Add(left.view(), b.view(), left.view(), stream);
  EXPECT_EQ(left.values(), want);
  HostTensor<float> right = b;
  Add(a.view(), right.view(), right.view(), stream);
  EXPECT_EQ(right.values(), want);
}

TEST_P(Elementwise, AddInPlaceMatchesReference) {
  const std::vector<float> want = reference::Add(a.values(), b.values());
  AddInPlace(a.view(), b.view(), stream);
  EXPECT_EQ(b.values(), want);
}

TEST_P(Elementwise, ScaleInPlaceMatchesReference) {
  const std::vector<float> want = reference::Scale(0.3f, a.values());
  ScaleInPlace(0.3f, a.view(), stream);
  EXPECT_EQ(a.values(), want);
}

TEST_P(Elementwise, SumOfSquaresMatchesReference) {
  const double want = reference::SumOfSquares(ToDouble(a.values()));
  EXPECT_NEAR(SumOfSquaresOf(a), want, 1e-13 * want);
}

TEST_P(Elementwise, ConvertRoundsToBFloat16AndBack) {
  HostTensor<BFloat16> rounded({n});
  Convert(a.view(), rounded.view(), stream);
  HostTensor<float> back = Poisoned({n});
  Convert(rounded.view(), back.view(), stream);
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_EQ(static_cast<double>(back[i]),
              reference::RoundToBFloat16(static_cast<double>(a[i])))
        << a[i];
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, Elementwise,
                         ::testing::Values(1, 7, 33, 16384, 16385));

TEST(Convert, TiesGoToEvenAndNanStays) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  // Half a unit of bf16 above 1 and above its odd neighbour; just over half;
  // what rounds to infinity.
  const HostTensor<float> x(
      {6}, {1.00390625f, 1.01171875f, 1.00390637f, -3.4e38f, kInfinity,
            std::numeric_limits<float>::quiet_NaN()});
  HostTensor<BFloat16> rounded({6});
  HostTensor<float> back = Poisoned({6});
  Stream stream;
  Convert(x.view(), rounded.view(), stream);
  Convert(rounded.view(), back.view(), stream);
  EXPECT_EQ(back[0], 1.0f);
  EXPECT_EQ(back[1], 1.015625f);
  EXPECT_EQ(back[2], 1.0078125f);
  EXPECT_EQ(back[3], -kInfinity);
  EXPECT_EQ(back[4], kInfinity);
  EXPECT_TRUE(std::isnan(back[5]));
}

TEST(Convert, BetweenEqualTypesCopies) {
  const HostTensor<float> x = RandomNormal(3, "x", {37});
  HostTensor<float> y = Poisoned({37});
  Stream stream;
  Convert(x.view(), y.view(), stream);
  EXPECT_EQ(y.values(), x.values());
}

TEST(SumOfSquares, CountsEveryElementOfALongTensor) {
  const int64_t n = 256 * 16384 + 777;  // more than 256 pieces of least size
  HostTensor<float> x({n}, 1.0f);
  x[n - 1] = 3.0f;
  EXPECT_EQ(SumOfSquaresOf(x), static_cast<double>(n) + 8.0);
}

TEST(SumOfSquares, OfNothingIsZero) {
  EXPECT_EQ(SumOfSquaresOf(HostTensor<float>({0})), 0.0);
}

TEST(SumOfSquares, DoesNotOverflow) {
  const double value = static_cast<double>(3e38f);
  EXPECT_DOUBLE_EQ(SumOfSquaresOf(HostTensor<float>({2}, 3e38f)),
                   2 * value * value);
}

TEST(SumOfSquares, PassesNanAndInfinityOn) {
  HostTensor<float> x = RandomNormal(2, "x", {100});
  x[50] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(SumOfSquaresOf(x), std::numeric_limits<double>::infinity());
  x[51] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(SumOfSquaresOf(x)));
}

}  // namespace
}  // namespace cubit
