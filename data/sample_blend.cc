// SPDX-License-Identifier: Apache-2.0

#include "data/sample_blend.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/check.h"

namespace cubit {
namespace {

constexpr int kBits = 32;
constexpr uint64_t kOne = uint64_t{1} << kBits;

// How many of the first `position` positions a set of this share has: the
// nearest integer, so that it grows by none or one from each to the next.
int64_t Taken(uint64_t share, int64_t position) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>(
      (static_cast<Wide>(position) * share + kOne / 2) >> kBits);
}

}  // namespace

SampleBlend::SampleBlend(const std::vector<double>& weights) {
  CUBIT_CHECK(!weights.empty());
  double rest = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (size_t set = 0; set + 1 < weights.size(); ++set) {
    CUBIT_CHECK(weights[set] > 0 && weights[set + 1] > 0);
    const double share =
        std::nearbyint(weights[set] / rest * static_cast<double>(kOne));
    // However small its weight, a set and those after it get something.
    shares_.push_back(static_cast<uint64_t>(
        std::clamp(share, 1.0, static_cast<double>(kOne - 1))));
    rest -= weights[set];
  }
}

SampleBlend::Place SampleBlend::At(int64_t position) const {
  CUBIT_CHECK_GE(position, 0);
  for (size_t set = 0; set < shares_.size(); ++set) {
    const int64_t taken = Taken(shares_[set], position);
    if (Taken(shares_[set], position + 1) > taken) {
      return {static_cast<int64_t>(set), taken};
    }
    position -= taken;
  }
  return {static_cast<int64_t>(shares_.size()), position};
}

std::vector<int64_t> SampleBlend::Counts(int64_t position) const {
  std::vector<int64_t> counts;
  for (const uint64_t share : shares_) {
    counts.push_back(Taken(share, position));
    position -= counts.back();
  }
  counts.push_back(position);
  return counts;
}

int64_t SkipPositions(const std::vector<PositionRange>& skipped,
                      int64_t position) {
  for (const PositionRange& range : skipped) {
    if (position < range.begin) break;
    position += range.end - range.begin;
  }
  return position;
}

}  // namespace cubit
