// SPDX-License-Identifier: Apache-2.0
//
// Tiles of one head in shared memory: kRows rows of kDim elements, kTilePad
// elements apart so that the rows of a fragment lie in different banks; zeros
// beyond the sequence and the head dim.

#ifndef CUBIT_OPS_CUDA_HEAD_TILE_CUH_
#define CUBIT_OPS_CUDA_HEAD_TILE_CUH_

#include <cstdint>

#include "ops/cuda/adjoint.h"
#include "ops/cuda/fragment.cuh"
#include "ops/cuda/mma.cuh"

namespace cubit {
namespace cuda {

// 16 bytes of bf16 (ldmatrix reads 8 rows of 16 bytes), 32 bytes of fp32 (half
// a warp reads 4 rows of 32 bytes).
constexpr int kTilePad = 8;

// Starts to copy rows [row, row + kRows) of head (b, h) into `tile`. The caller
// commits and waits, then synchronises the block.
template <typename Element, int kRows, int kDim, int kThreads>
__device__ __forceinline__ void LoadTile(const DeviceHeads& heads, int b, int h,
                                         int row, int seq_len, int head_dim,
                                         Element* tile) {
  constexpr int kStride = kDim + kTilePad;
  const Element* head = heads.Head<const Element>(b, h);
  if (heads.vectors) {
    constexpr int kVector = 16 / sizeof(Element);
    constexpr int kVectors = kDim / kVector;
#pragma unroll 4
    for (int i = threadIdx.x; i < kRows * kVectors; i += kThreads) {
      const int r = i / kVectors;
      const int c = i % kVectors * kVector;
      const bool valid = row + r < seq_len && c < head_dim;
      const Element* source =
          valid ? head + (row + r) * heads.seq_stride + c : head;
      CopyAsync16(SharedAddress(tile + r * kStride + c), source, valid);
    }
    return;
  }
  for (int i = threadIdx.x; i < kRows * kDim; i += kThreads) {
    const int r = i / kDim;
    const int c = i % kDim;
    const bool valid = row + r < seq_len && c < head_dim;
    float value = 0;
    if (valid) value = AsFloat(head[(row + r) * heads.seq_stride + c]);
    Store(value, tile + r * kStride + c);
  }
}

// First row of the document of `row`, and the end of that document.
__device__ __forceinline__ int DocumentBegin(const int32_t* segments, int row) {
  int low = 0, high = row;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (segments[middle] < segments[row]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}
__device__ __forceinline__ int DocumentEnd(const int32_t* segments, int row,
                                           int seq_len) {
  int low = row + 1, high = seq_len;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (segments[middle] > segments[row]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_HEAD_TILE_CUH_
