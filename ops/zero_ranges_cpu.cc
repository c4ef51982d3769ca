// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include "ops/zero_ranges.h"

namespace cubit {

void ZeroRanges(absl::Span<const FloatRange> ranges, Stream& stream) {
  for (const FloatRange& range : ranges) {
    SetZero(range.data, range.count * static_cast<int64_t>(sizeof(float)),
            stream);
  }
}

}  // namespace cubit
