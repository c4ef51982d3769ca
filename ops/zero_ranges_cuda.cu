// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include "ops/zero_ranges.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

// Ranges of one launch, as its argument.
constexpr int kRangesOfLaunch = 128;
struct RangeTable {
  FloatRange ranges[kRangesOfLaunch];
};
constexpr int kThreads = 256;
constexpr int kBlocksOfRange = 4;
// From here on a memset takes longer than it takes to begin.
constexpr int64_t kCountOfMemset = 1 << 18;

__global__ void ZeroRangesKernel(const __grid_constant__ RangeTable table) {
  const FloatRange& range = table.ranges[blockIdx.y];
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < range.count;
       i += kBlocksOfRange * kThreads) {
    range.data[i] = 0;
  }
}

void Launch(const RangeTable& table, int count, Stream& stream) {
  if (count == 0) return;
  const dim3 grid(kBlocksOfRange, static_cast<unsigned>(count));
  ZeroRangesKernel<<<grid, kThreads, 0, CudaStream(stream)>>>(table);
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace

void ZeroRanges(absl::Span<const FloatRange> ranges, Stream& stream) {
  RangeTable table;
  int count = 0;
  for (const FloatRange& range : ranges) {
    if (range.count >= kCountOfMemset) {
      SetZero(range.data, range.count * static_cast<int64_t>(sizeof(float)),
              stream);
      continue;
    }
    table.ranges[count++] = range;
    if (count < kRangesOfLaunch) continue;
    Launch(table, count, stream);
    count = 0;
  }
  Launch(table, count, stream);
}

}  // namespace cubit
