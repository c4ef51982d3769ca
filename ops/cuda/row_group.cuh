// SPDX-License-Identifier: Apache-2.0
//
// Rows of a norm: 2^k threads, at least a warp, hold one row in registers.

#ifndef CUBIT_OPS_CUDA_ROW_GROUP_CUH_
#define CUBIT_OPS_CUDA_ROW_GROUP_CUH_

#include <algorithm>
#include <cstdint>

#include "ops/cuda/memory_pass.cuh"

namespace cubit {
namespace cuda {

constexpr int kMaxRowThreads = 1024;

// How a block is cut into rows.
struct RowLayout {
  int threads_per_row;
  int threads_per_block;
  int rows_per_block;
};

// Rows of `dim` elements, at most `elements` a thread, which is a multiple of
// the elements of a pack. CHECK: 1 <= dim <= elements * kMaxRowThreads.
inline RowLayout MakeRowLayout(int64_t dim, int elements) {
  constexpr int kSmallestBlock = 128;
  CUBIT_CHECK(dim >= 1 && dim <= int64_t{elements} * kMaxRowThreads) << dim;
  RowLayout layout;
  layout.threads_per_row = kWarpSize;
  while (int64_t{layout.threads_per_row} * elements < dim) {
    layout.threads_per_row *= 2;
  }
  layout.threads_per_block = std::max(kSmallestBlock, layout.threads_per_row);
  layout.rows_per_block = layout.threads_per_block / layout.threads_per_row;
  return layout;
}

// The threads of this thread's row.
class RowGroup {
 public:
  // `shared` has a float2 for each warp of the block.
  __device__ RowGroup(int threads_per_row, float2* shared)
      : threads_(threads_per_row),
        index_(static_cast<int>(threadIdx.x) / threads_per_row),
        shared_(shared) {}

  __device__ int index() const { return index_; }  // row within the block
  __device__ int thread() const {
    return static_cast<int>(threadIdx.x) & (threads_ - 1);
  }
  __device__ int threads() const { return threads_; }

  // Sums over the row, the same in all its threads, in a fixed order. All
  // threads of the row must call it.
  __device__ __forceinline__ float2 Sum(float2 x) const {
    x.x = WarpSum(x.x);
    x.y = WarpSum(x.y);
    if (threads_ == kWarpSize) return x;
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    if (threadIdx.x % kWarpSize == 0) shared_[warp] = x;
    Wait();
    const int num_warps = threads_ / kWarpSize;
    const float2* of_row = shared_ + index_ * num_warps;
    float2 total = of_row[0];
#pragma unroll 1
    for (int i = 1; i < num_warps; ++i) {
      total.x += of_row[i].x;
      total.y += of_row[i].y;
    }
    Wait();
    return total;
  }

 private:
  // Barrier 0 is the whole block's. A block has at most two rows of more than a
  // warp; the numbers are constants because a kernel is given all 16 barriers
  // otherwise, and a multiprocessor then holds fewer blocks.
  __device__ __forceinline__ void Wait() const {
    if (index_ == 0) {
      asm volatile("bar.sync 1, %0;" ::"r"(threads_) : "memory");
    } else {
      asm volatile("bar.sync 2, %0;" ::"r"(threads_) : "memory");
    }
  }

  int threads_;
  int index_;
  float2* shared_;
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ROW_GROUP_CUH_
