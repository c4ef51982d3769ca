// SPDX-License-Identifier: Apache-2.0

#include "data/sample_blend.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace cubit {
namespace {

TEST(SampleBlend, OneSetHasEveryPosition) {
  const SampleBlend blend({3});
  for (const int64_t position : {int64_t{0}, int64_t{7}, int64_t{1} << 60}) {
    EXPECT_EQ(blend.At(position).set, 0);
    EXPECT_EQ(blend.At(position).position, position);
    EXPECT_EQ(blend.Counts(position), std::vector<int64_t>{position});
  }
}

// Every set is given its positions 0, 1, 2, ... in order.
TEST(SampleBlend, DealsEachSetItsPositionsInOrder) {
  for (const std::vector<double>& weights :
       {std::vector<double>{1, 1}, {3, 1}, {0.7, 0.2, 0.1}, {1, 1e-6, 5, 2}}) {
    const SampleBlend blend(weights);
    std::vector<int64_t> next(weights.size());
    for (int64_t position = 0; position < 20000; ++position) {
      ASSERT_EQ(blend.Counts(position), next);
      const SampleBlend::Place place = blend.At(position);
      ASSERT_EQ(place.position, next[static_cast<size_t>(place.set)]++);
    }
  }
}

TEST(SampleBlend, KeepsToTheWeightsAtEveryMoment) {
  const std::vector<double> weights = {0.5, 0.3, 0.15, 0.05};
  const SampleBlend blend(weights);
  for (const int64_t position : {100, 12345, 999999, 1 << 30}) {
    const std::vector<int64_t> counts = blend.Counts(position);
    for (size_t set = 0; set < weights.size(); ++set) {
      EXPECT_NEAR(static_cast<double>(counts[set]),
                  weights[set] * static_cast<double>(position),
                  static_cast<double>(set) + 1)
          << position << " " << set;
    }
  }
}

TEST(SampleBlend, WorksFarBeyondThePowersOfTwoThatOverflow) {
  const SampleBlend blend({2, 1});
  const int64_t far = (int64_t{1} << 61) + 12345;
  const std::vector<int64_t> counts = blend.Counts(far);
  EXPECT_EQ(counts[0] + counts[1], far);
  EXPECT_NEAR(static_cast<double>(counts[0]) / static_cast<double>(far),
              2.0 / 3, 1e-9);
  for (int64_t i = 0; i < 100; ++i) {
    const SampleBlend::Place place = blend.At(far + i);
    EXPECT_EQ(place.position,
              blend.Counts(far + i)[static_cast<size_t>(place.set)]);
  }
}

TEST(SampleBlend, GivesTheSmallestWeightSomething) {
  const SampleBlend blend({1e9, 1e-9});
  EXPECT_GE(blend.Counts(int64_t{1} << 34)[1], 1);
  const SampleBlend reversed({1e-9, 1e9});
  EXPECT_GE(reversed.Counts(int64_t{1} << 34)[0], 1);
}

TEST(SkipPositions, LeavesOutTheRanges) {
  const std::vector<PositionRange> skipped = {{0, 2}, {5, 6}, {6, 9}};
  std::vector<int64_t> found;
  for (int64_t i = 0; i < 6; ++i) found.push_back(SkipPositions(skipped, i));
  EXPECT_EQ(found, (std::vector<int64_t>{2, 3, 4, 9, 10, 11}));
  EXPECT_EQ(SkipPositions({}, 5), 5);
}

}  // namespace
}  // namespace cubit
