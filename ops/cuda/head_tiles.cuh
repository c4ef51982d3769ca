// SPDX-License-Identifier: Apache-2.0
//
// Tiles of [B, T, H, K] views between device and shared memory, and rows of
// accumulators back to device memory.

#ifndef CUBIT_OPS_CUDA_HEAD_TILES_CUH_
#define CUBIT_OPS_CUDA_HEAD_TILES_CUH_

#include <cstdint>

#include "ops/cuda/head_views.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/operands.cuh"
#include "ops/cuda/pairs.cuh"

namespace cubit {
namespace cuda {

// Copies rows [first, first + kRows) of `head` (of view `x`) to a tile of rows
// of kDim elements, kStride apart; zeros beyond the view's rows and columns.
// Whoever reads the tile waits for the committed copies and for all threads.
template <typename T, int kRows, int kDim, int kStride, int kThreads>
__device__ __forceinline__ void LoadTile(const HeadRows<const T>& x,
                                         const T* head, int first, T* tile) {
  constexpr int kVector = 16 / sizeof(T);
  if (x.vectors) {
    constexpr int kVectors = kDim / kVector;  // of a row
    // Few addresses in registers: one row and column, advanced by constants
    // where the vectors of a row divide the threads.
    constexpr bool kEven = kThreads % kVectors == 0;
    const int first_row = threadIdx.x / kVectors;
    const int column = threadIdx.x % kVectors * kVector;
#pragma unroll
    for (int i = 0; i < (kRows * kVectors + kThreads - 1) / kThreads; ++i) {
      const int index = threadIdx.x + i * kThreads;
      if (kRows * kVectors % kThreads != 0 && index >= kRows * kVectors) break;
      const int r =
          kEven ? first_row + i * (kThreads / kVectors) : index / kVectors;
      const int c = kEven ? column : index % kVectors * kVector;
      const bool valid = first + r < x.seq_len && c < x.head_dim;
      const T* source = valid ? head + (first + r) * x.seq_stride + c : head;
      CopyAsync16(SharedAddress(tile + r * kStride + c), source, valid);
    }
    return;
  }
  for (int i = threadIdx.x; i < kRows * kDim; i += kThreads) {
    const int row = i / kDim;
    const int column = i % kDim;
    const bool valid = first + row < x.seq_len && column < x.head_dim;
    tile[row * kStride + column] =
        valid ? head[(first + row) * x.seq_stride + column]
              : FromFloat<T>(0.0f);
  }
}

// Writes one row of a warp's accumulators 16 x kDim, times `factor`: `half` 0
// is row lane / 4, 1 is row lane / 4 + 8. Adds to what is there if
// `accumulate`.
template <typename T, int kDim>
__device__ __forceinline__ void StoreAccumulators(const float (&c)[kDim / 8][4],
                                                  int half, float factor,
                                                  bool accumulate,
                                                  const HeadRows<T>& x,
                                                  T* row) {
  const int quad = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    const int column = n * 8 + quad * 2;
    float first = c[n][half * 2] * factor;
    float second = c[n][half * 2 + 1] * factor;
    if (column >= x.head_dim) continue;
    if (x.pairs) {
      if (accumulate) {
        const float2 old = LoadPair(row + column);
        first += old.x;
        second += old.y;
      }
      StorePair(row + column, first, second);
      continue;
    }
    if (accumulate) first += ToFloat(row[column]);
    row[column] = FromFloat<T>(first);
    if (column + 1 >= x.head_dim) continue;
    if (accumulate) second += ToFloat(row[column + 1]);
    row[column + 1] = FromFloat<T>(second);
  }
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_HEAD_TILES_CUH_
