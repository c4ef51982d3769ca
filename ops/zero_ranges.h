// SPDX-License-Identifier: Apache-2.0
//
// Many places in memory set to zero at once.

#ifndef CUBIT_OPS_ZERO_RANGES_H_
#define CUBIT_OPS_ZERO_RANGES_H_

#include <cstdint>

#include "absl/types/span.h"

#include "runtime/device.h"

namespace cubit {

// fp32 numbers in the device's memory.
struct FloatRange {
  float* data = nullptr;
  int64_t count = 0;
};

// What SetZero (device.h) does for each range; they do not overlap. A GPU takes
// microseconds to begin with each memset, and gradients between those of
// weights are many and short.
void ZeroRanges(absl::Span<const FloatRange> ranges, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_ZERO_RANGES_H_
