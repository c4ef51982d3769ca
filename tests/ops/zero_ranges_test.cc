// SPDX-License-Identifier: Apache-2.0

#include "ops/zero_ranges.h"

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

#include "runtime/device.h"

namespace cubit {
namespace {

// Places of 1 to 300 numbers, and three of more than a megabyte, with a number
// between them that stays: more places than a GPU takes with one launch.
TEST(ZeroRanges, ZeroesTheseAndNothingElse) {
  std::vector<int64_t> counts;
  for (int64_t i = 0; i < 300; ++i) {
    counts.push_back(i % 100 == 50 ? 300'000 + i : i + 1);
  }
  std::vector<float> wanted = {1};
  for (const int64_t count : counts) {
    wanted.insert(wanted.end(), static_cast<size_t>(count), 0);
    wanted.push_back(1);
  }
  std::vector<float> values(wanted.size(), 1);
  std::vector<FloatRange> ranges;
  float* place = values.data() + 1;
  for (const int64_t count : counts) {
    ranges.push_back({place, count});
    place += count + 1;
  }
  Stream stream;
  ZeroRanges(ranges, stream);
  stream.Synchronize();
  EXPECT_TRUE(values == wanted);
}

TEST(ZeroRanges, OfNoneDoesNothing) {
  Stream stream;
  ZeroRanges({}, stream);
  stream.Synchronize();
}

}  // namespace
}  // namespace cubit
