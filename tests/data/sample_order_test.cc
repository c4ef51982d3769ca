// SPDX-License-Identifier: Apache-2.0

#include "data/sample_order.h"

#include <cstdint>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace cubit {
namespace {

std::vector<int64_t> Epoch(uint64_t seed, int64_t num_samples, int64_t epoch) {
  const SampleOrder order(seed, num_samples);
  std::vector<int64_t> samples;
  for (int64_t i = 0; i < num_samples; ++i) {
    samples.push_back(order.SampleAt(epoch * num_samples + i));
  }
  return samples;
}

TEST(SampleOrder, IsAPermutationInEveryEpoch) {
  std::vector<int64_t> sizes = {255, 256, 257, 1000, 4095, 4096, 4097, 70000};
  for (int64_t size = 1; size <= 70; ++size) sizes.push_back(size);
  for (const int64_t size : sizes) {
    for (const int64_t epoch : {0, 1, 7}) {
      std::vector<bool> seen(static_cast<size_t>(size), false);
      for (const int64_t sample : Epoch(1234, size, epoch)) {
        ASSERT_GE(sample, 0);
        ASSERT_LT(sample, size);
        ASSERT_FALSE(seen[static_cast<size_t>(sample)])
            << sample << " twice among " << size;
        seen[static_cast<size_t>(sample)] = true;
      }
    }
  }
}

TEST(SampleOrder, DiffersBySeedAndEpochAndRepeatsForTheSame) {
  for (const int64_t size : {10, 1000}) {
    std::set<std::vector<int64_t>> orders;
    for (const uint64_t seed : {0u, 1u, 2u}) {
      for (const int64_t epoch : {0, 1, 2}) {
        orders.insert(Epoch(seed, size, epoch));
        EXPECT_EQ(Epoch(seed, size, epoch), Epoch(seed, size, epoch));
      }
    }
    EXPECT_EQ(orders.size(), 9u);
  }
}

// The order is part of what resuming relies on: it must never change.
TEST(SampleOrder, StaysAsItIs) {
  EXPECT_EQ(Epoch(1, 10, 0),
            (std::vector<int64_t>{2, 1, 3, 8, 9, 5, 0, 4, 6, 7}));
  EXPECT_EQ(Epoch(1, 10, 3),
            (std::vector<int64_t>{1, 6, 8, 2, 4, 3, 9, 0, 7, 5}));
}

TEST(SampleOrder, CountsEpochs) {
  const SampleOrder order(5, 10);
  EXPECT_EQ(order.EpochOf(0), 0);
  EXPECT_EQ(order.EpochOf(9), 0);
  EXPECT_EQ(order.EpochOf(10), 1);
  EXPECT_EQ(order.EpochOf(123456), 12345);
}

// Every place must be reached by every sample about equally often over seeds:
// chi-squared of 100 cells with 81 degrees of freedom, limit far in the tail.
TEST(SampleOrder, PutsEverySampleEverywhere) {
  constexpr int64_t kSize = 10;
  constexpr int kSeeds = 20000;
  int count[kSize][kSize] = {};
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const SampleOrder order(seed, kSize);
    for (int64_t i = 0; i < kSize; ++i) ++count[i][order.SampleAt(i)];
  }
  double chi_squared = 0;
  constexpr double kExpected = static_cast<double>(kSeeds) / kSize;
  for (const auto& row : count) {
    for (const int cell : row) {
      chi_squared += (cell - kExpected) * (cell - kExpected) / kExpected;
    }
  }
  EXPECT_LT(chi_squared, 150);
}

// Neighbours must not stay neighbours.
TEST(SampleOrder, ScattersNeighbours) {
  constexpr int64_t kSize = 100000;
  const std::vector<int64_t> samples = Epoch(3, kSize, 0);
  double distance = 0;
  for (size_t i = 1; i < samples.size(); ++i) {
    distance += static_cast<double>(std::abs(samples[i] - samples[i - 1]));
  }
  // A third of the size for a random order.
  EXPECT_NEAR(distance / kSize / kSize, 1.0 / 3, 0.01);
}

TEST(SampleOrder, ServesHugeSizesWithoutATable) {
  for (const int64_t size :
       {int64_t{1} << 40, (int64_t{1} << 40) + 1, (int64_t{1} << 62) - 1}) {
    const SampleOrder order(9, size);
    std::set<int64_t> samples;
    for (int64_t i = 0; i < 1000; ++i) {
      const int64_t position = i < 500 ? i : size - i;
      const int64_t sample = order.SampleAt(position);
      EXPECT_GE(sample, 0);
      EXPECT_LT(sample, size);
      samples.insert(sample);
    }
    EXPECT_EQ(samples.size(), 1000u);
  }
}

}  // namespace
}  // namespace cubit
