// SPDX-License-Identifier: Apache-2.0

#include "ops/vector_math.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/strings/str_format.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kMin = std::numeric_limits<float>::min();
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kMax = std::numeric_limits<float>::max();

using VectorFunction = void (*)(const float*, float*, int64_t);

std::vector<float> Map(VectorFunction function, std::vector<float> x) {
  std::vector<float> y(x.size(), kNan);
  function(x.data(), y.data(), static_cast<int64_t>(x.size()));
  return y;
}

// Every `stride`-th float from `low` to `high`, both of one sign and |low| <
// |high|.
std::vector<float> Floats(float low, float high, uint32_t stride) {
  uint32_t first;
  uint32_t last;
  std::memcpy(&first, &low, sizeof(first));
  std::memcpy(&last, &high, sizeof(last));
  std::vector<float> x;
  for (uint32_t bits = first; bits <= last; bits += stride) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    x.push_back(value);
  }
  return x;
}

// |got - want| in units of the last place of `want` as a float.
double Ulps(float got, double want) {
  const double magnitude = std::max(std::abs(want), static_cast<double>(kMin));
  const double ulp = std::ldexp(1.0, std::ilogb(magnitude) - 23);
  return std::abs(static_cast<double>(got) - want) / ulp;
}

void ExpectUlps(VectorFunction function, double (*exact)(double),
                const std::vector<float>& x, double limit) {
  const std::vector<float> y = Map(function, x);
  double worst = -1;
  float worst_x = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double ulps = Ulps(y[i], exact(static_cast<double>(x[i])));
    ASSERT_FALSE(std::isnan(ulps)) << "at " << absl::StrFormat("%a", x[i]);
    if (ulps > worst) {
      worst = ulps;
      worst_x = x[i];
    }
  }
  EXPECT_LE(worst, limit) << "at " << absl::StrFormat("%a", worst_x);
  ::testing::Test::RecordProperty("worst_ulps", absl::StrFormat("%.3f", worst));
}

double ExactExp(double x) { return std::exp(x); }
double ExactLog(double x) { return std::log(x); }
double ExactTanh(double x) { return std::tanh(x); }
double ExactSigmoid(double x) { return 1 / (1 + std::exp(-x)); }

constexpr uint32_t kStride = 5003;  // a prime: all exponents, varied mantissas

TEST(VectorExp, IsWithinOneUlp) {
  ExpectUlps(VectorExp, ExactExp, Floats(0.0f, 88.72f, kStride), 1);
  ExpectUlps(VectorExp, ExactExp, Floats(-0.0f, -110.0f, kStride), 1);
}

TEST(VectorExp, IsDefinedOutsideItsRange) {
  const std::vector<float> y =
      Map(VectorExp, {-kInfinity, kLowest, -1e4f, -104.0f, -103.0f, 0.0f, -0.0f,
                      88.8f, 1e4f, kMax, kInfinity, kNan, -kNan});
  for (int i = 0; i < 4; ++i) EXPECT_EQ(y[i], 0.0f) << i;
  EXPECT_GT(y[4], 0.0f) << "exp(-103) is a denormal number";
  EXPECT_EQ(y[5], 1.0f);
  EXPECT_EQ(y[6], 1.0f);
  for (int i = 7; i < 11; ++i) EXPECT_EQ(y[i], kInfinity) << i;
  EXPECT_TRUE(std::isnan(y[11]));
  EXPECT_TRUE(std::isnan(y[12]));
}

TEST(VectorExp, KeepsDenormalNumbersOfTheProcess) {
  volatile float smallest = std::numeric_limits<float>::denorm_min();
  EXPECT_GT(smallest * 3.0f, smallest) << "flush-to-zero is on";
}

TEST(VectorExp, TailAndPositionDoNotChangeAnElement) {
  const std::vector<float> x = Floats(0.01f, 80.0f, 1000003);
  const std::vector<float> all = Map(VectorExp, x);
  for (size_t n = 1; n < 40; ++n) {
    for (size_t begin = 0; begin + n <= x.size() && begin < 9; ++begin) {
      const float* first = x.data() + begin;
      const std::vector<float> y =
          Map(VectorExp, std::vector<float>(first, first + n));
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(y[i], all[begin + i]);
    }
  }
}

TEST(VectorExp, WorksInPlaceAndOnNothing) {
  std::vector<float> x = {0.0f, 1.0f, 2.0f};
  VectorExp(x.data(), x.data(), 0);
  EXPECT_EQ(x[0], 0.0f);
  VectorExp(x.data(), x.data(), 3);
  EXPECT_EQ(x, Map(VectorExp, {0.0f, 1.0f, 2.0f}));
}

TEST(VectorExpSum, WritesExponentialsAndTheirSum) {
  for (const int64_t n : {0, 1, 15, 16, 17, 1023, 1024, 1025, 5000}) {
    std::vector<float> x(n);
    for (int64_t i = 0; i < n; ++i) {
      x[i] = static_cast<float>(std::sin(0.37 * static_cast<double>(i)) * 9);
    }
    std::vector<float> y(n, kNan);
    const double sum = VectorExpSum(x.data(), 9.0f, y.data(), n);
    double want = 0;
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_LE(Ulps(y[i], std::exp(static_cast<double>(x[i] - 9.0f))), 1);
      want += static_cast<double>(y[i]);
    }
    EXPECT_NEAR(sum, want, 1e-13 * want) << n;
  }
}

TEST(VectorExpSum, MaskedElementsAddNothing) {
  const std::vector<float> x = {-kInfinity, 2.0f, -kInfinity, kLowest};
  std::vector<float> y(4, kNan);
  EXPECT_EQ(VectorExpSum(x.data(), 2.0f, y.data(), 4), 1.0);
  EXPECT_EQ(y, (std::vector<float>{0, 1, 0, 0}));
}

TEST(VectorLog, IsWithinOneUlp) {
  ExpectUlps(VectorLog, ExactLog,
             Floats(std::numeric_limits<float>::denorm_min(), kMax, kStride),
             1);
  ExpectUlps(VectorLog, ExactLog, Floats(0.9f, 1.1f, 7), 1);
}

TEST(VectorLog, IsDefinedOutsideItsRange) {
  const std::vector<float> y = Map(VectorLog, {0.0f, -0.0f, 1.0f, kInfinity,
                                               -kMin, -1.0f, -kInfinity, kNan});
  EXPECT_EQ(y[0], -kInfinity);
  EXPECT_EQ(y[1], -kInfinity);
  EXPECT_EQ(y[2], 0.0f);
  EXPECT_EQ(y[3], kInfinity);
  for (int i = 4; i < 8; ++i) EXPECT_TRUE(std::isnan(y[i])) << i;
}

TEST(VectorTanh, IsWithinThreeUlps) {
  ExpectUlps(VectorTanh, ExactTanh, Floats(0.0f, kMax, kStride), 3);
  ExpectUlps(VectorTanh, ExactTanh, Floats(-0.0f, kLowest, kStride), 3);
}

TEST(VectorTanh, IsDefinedAtTheEnds) {
  const std::vector<float> y =
      Map(VectorTanh, {-kInfinity, kInfinity, -0.0f, 0.0f, kNan});
  EXPECT_EQ(y[0], -1.0f);
  EXPECT_EQ(y[1], 1.0f);
  EXPECT_TRUE(std::signbit(y[2]) && y[2] == 0.0f);
  EXPECT_FALSE(std::signbit(y[3]) || y[3] != 0.0f);
  EXPECT_TRUE(std::isnan(y[4]));
}

TEST(VectorSigmoid, IsWithinThreeUlps) {
  ExpectUlps(VectorSigmoid, ExactSigmoid, Floats(0.0f, kMax, kStride), 3);
  ExpectUlps(VectorSigmoid, ExactSigmoid, Floats(-0.0f, kLowest, kStride), 3);
}

TEST(VectorSigmoid, IsDefinedAtTheEnds) {
  const std::vector<float> y =
      Map(VectorSigmoid, {-kInfinity, kInfinity, 0.0f, kNan});
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[1], 1.0f);
  EXPECT_EQ(y[2], 0.5f);
  EXPECT_TRUE(std::isnan(y[3]));
}

}  // namespace
}  // namespace cubit
