// SPDX-License-Identifier: Apache-2.0

#include "runtime/philox.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace cubit {
namespace {

using Words4 = std::array<uint32_t, 4>;

// Known answers of the paper's library, Random123 (kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox::Encipher({0, 0, 0, 0}, {0, 0}),
            (Words4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox::Encipher({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                             {0xffffffff, 0xffffffff}),
            (Words4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox::Encipher({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                             {0xa4093822, 0x299f31d0}),
            (Words4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, IsAFunctionOfSeedNameAndIndex) {
  const Philox random(7, "block.0.weight");
  EXPECT_EQ(random.Block(5), Philox(7, "block.0.weight").Block(5));
  EXPECT_NE(random.Block(5), random.Block(6));
  EXPECT_NE(random.Block(5), Philox(8, "block.0.weight").Block(5));
  EXPECT_NE(random.Block(5), Philox(7, "block.1.weight").Block(5));
  // All 64 bits of seed and index count.
  EXPECT_NE(random.Block(5), random.Block(5 + (uint64_t{1} << 32)));
  EXPECT_NE(random.Block(5),
            Philox(7 + (uint64_t{1} << 32), "block.0.weight").Block(5));
}

// Parameters of stored runs begin from these bits: a change here changes every
// run, and must be meant.
TEST(Philox, StreamsAreFrozen) {
  const Philox random(1234, "embedding");
  EXPECT_EQ(random.Bits(0), 0x643a3a2b0c7d833au);
  EXPECT_EQ(random.Bits(1000000007), 0xcb35093868dc5c5au);
}

TEST(Uniform, HasTheMomentsOfTheDistributionAndStaysInRange) {
  const Philox random(1, "uniform");
  constexpr int kCount = 100000;
  double sum = 0;
  double squares = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double u = random.Uniform(i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  // Five standard deviations of each mean.
  EXPECT_NEAR(sum / kCount, 0.5, 5 * std::sqrt(1.0 / 12 / kCount));
  EXPECT_NEAR(squares / kCount, 1.0 / 3, 5 * std::sqrt(4.0 / 45 / kCount));
}

TEST(Normal, HasTheFirstFourMoments) {
  const Philox random(2, "normal");
  constexpr int kCount = 100000;
  double moments[5] = {};
  for (uint64_t i = 0; i < kCount; ++i) {
    const double x = random.Normal(i);
    ASSERT_TRUE(std::isfinite(x));
    for (int power = 1; power <= 4; ++power)
      moments[power] += std::pow(x, power);
  }
  // E x^k, and five standard deviations sqrt(Var(x^k) / n) of its mean.
  const double expected[5] = {0, 0, 1, 0, 3};
  const double variance[5] = {0, 1, 2, 15, 96};
  for (int power = 1; power <= 4; ++power) {
    EXPECT_NEAR(moments[power] / kCount, expected[power],
                5 * std::sqrt(variance[power] / kCount))
        << "power " << power;
  }
}

// The largest gap between the empirical and the normal distribution function
// (Kolmogorov and Smirnov), which moments alone would not see.
TEST(Normal, FollowsTheDistributionFunction) {
  const Philox random(3, "normal");
  constexpr size_t kCount = 20000;
  std::vector<double> values(kCount);
  for (size_t i = 0; i < kCount; ++i) values[i] = random.Normal(i);
  std::sort(values.begin(), values.end());
  double gap = 0;
  for (size_t i = 0; i < kCount; ++i) {
    const double cdf = 0.5 * std::erfc(-values[i] / std::sqrt(2.0));
    const double rank = static_cast<double>(i);
    gap = std::max({gap, std::abs(cdf - rank / kCount),
                    std::abs(cdf - (rank + 1) / kCount)});
  }
  // Exceeded with probability 2 exp(-2 * 2.3^2) = 5e-5, were the seed not
  // fixed.
  EXPECT_LT(gap, 2.3 / std::sqrt(static_cast<double>(kCount)));
}

TEST(Normal, NeighboursAreUncorrelated) {
  const Philox random(4, "normal");
  constexpr int kCount = 100000;
  double sum = 0;
  double previous = random.Normal(0);
  for (uint64_t i = 1; i <= kCount; ++i) {
    const double next = random.Normal(i);
    sum += previous * next;
    previous = next;
  }
  EXPECT_NEAR(sum / kCount, 0.0, 5 / std::sqrt(static_cast<double>(kCount)));
}

// Bits, not numbers: -0 is not 0.
uint32_t BitsOf(float x) {
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

void ExpectFillsAsNormal(const Philox& random, uint64_t first, int64_t count,
                         double mean, double stddev) {
  std::vector<float> filled(static_cast<size_t>(count), -1.0f);
  random.FillNormal(first, count, mean, stddev, filled.data());
  int64_t different = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto wanted = static_cast<float>(
        mean + stddev * random.Normal(first + static_cast<uint64_t>(i)));
    different += BitsOf(filled[static_cast<size_t>(i)]) != BitsOf(wanted);
  }
  EXPECT_EQ(different, 0) << first << " " << count << " " << mean << " "
                          << stddev;
}

TEST(FillNormal, HasTheBitsOfNormal) {
  constexpr int64_t kMany = int64_t{1} << 21;  // about 40 of them in doubt
  ExpectFillsAsNormal(Philox(1, "wte"), 0, kMany, 0, 0.02);
  ExpectFillsAsNormal(Philox(~uint64_t{0}, "head"), 12345, kMany, 0, 1);
  ExpectFillsAsNormal(Philox(7, "mean"), 3, 100000, 0.5, 0.25);
}

TEST(FillNormal, AnyCountAndIndex) {
  const Philox random(3, "w");
  for (const int64_t count : {0, 1, 63, 64, 65, 130}) {
    ExpectFillsAsNormal(random, 5, count, 0, 1);
  }
  ExpectFillsAsNormal(random, (uint64_t{1} << 32) - 33, 100, 0, 1);
}

}  // namespace
}  // namespace cubit
