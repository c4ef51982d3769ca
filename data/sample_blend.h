// SPDX-License-Identifier: Apache-2.0
//
// Which data set gives which sample of a blend, and which samples are passed
// over: pure functions of the position, so that any position is found in O(1).

#ifndef CUBIT_DATA_SAMPLE_BLEND_H_
#define CUBIT_DATA_SAMPLE_BLEND_H_

#include <cstdint>
#include <vector>

namespace cubit {

// Deals the positions 0, 1, 2, ... out to several sets by weight. Each set gets
// its own positions 0, 1, 2, ... in order, none twice and none left out, and
// never differs from its share of the positions so far by more than one for
// every set before it: the first takes its share of all, the second its share
// of the rest, and so on.
class SampleBlend {
 public:
  // One weight > 0 for each set, relative to the others.
  explicit SampleBlend(const std::vector<double>& weights);

  struct Place {
    int64_t set;
    int64_t position;  // in that set
  };
  // position >= 0.
  Place At(int64_t position) const;

  // How many of the positions below `position` each set has.
  std::vector<int64_t> Counts(int64_t position) const;

 private:
  // Of what the sets before it leave, in units of 2^-32; of all sets but the
  // last.
  std::vector<uint64_t> shares_;
};

// Positions [begin, end).
struct PositionRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// The position'th of those that are in none of `skipped`, which is sorted and
// without overlaps.
int64_t SkipPositions(const std::vector<PositionRange>& skipped,
                      int64_t position);

}  // namespace cubit

#endif  // CUBIT_DATA_SAMPLE_BLEND_H_
