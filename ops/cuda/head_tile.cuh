// SPDX-License-Identifier: Apache-2.0
//
// Rows of one head for the kernels of adjoint.h.

#ifndef CUBIT_OPS_CUDA_HEAD_TILE_CUH_
#define CUBIT_OPS_CUDA_HEAD_TILE_CUH_

#include <cstdint>

#include "ops/cuda/adjoint.h"
#include "ops/cuda/pairs.cuh"
#include "ops/cuda/tile.cuh"

namespace cubit {
namespace cuda {

// Starts the copy of rows [row, row + TileType::kRows) of head (b, h), zeros
// beyond the sequence and the head dim (CopyRows in tile.cuh).
template <typename TileType, int kThreads>
__device__ __forceinline__ void CopyHeadRows(const DeviceHeads& heads, int b,
                                             int h, int row, int seq_len,
                                             int head_dim,
                                             typename TileType::Element* tile) {
  using Element = typename TileType::Element;
  CopyRows<TileType, TileType::kRows, kThreads>(
      tile, heads.Head<const Element>(b, h) + row * heads.seq_stride,
      heads.seq_stride, seq_len - row, head_dim, heads.vectors);
}

// Writes the warp's 16 rows of a tile, from `own_row` on, to rows from
// `first` + `own_row` on of head (b, h) in whole vectors, once all lanes have
// written theirs to the tile.
template <typename TileType>
__device__ __forceinline__ void StoreWarpRows(
    const typename TileType::Element* tile, int own_row,
    const DeviceHeads& heads, int b, int h, int first, int seq_len,
    int head_dim) {
  using Element = typename TileType::Element;
  constexpr int kChunk = TileType::kChunk;
  constexpr int kChunks = TileType::kDim / kChunk;  // of a row
  const int lane = threadIdx.x % 32;
  __syncwarp();
  Element* const target = heads.Head<Element>(b, h);
#pragma unroll
  for (int n = 0; n < 16 * kChunks; n += 32) {
    const int row = own_row + (n + lane) / kChunks;
    const int column = (n + lane) % kChunks * kChunk;
    if (first + row >= seq_len || column >= head_dim) continue;
    *reinterpret_cast<uint4*>(target + (first + row) * heads.seq_stride +
                              column) =
        *reinterpret_cast<const uint4*>(tile + TileType::Offset(row, column));
  }
}

// `x` as an Element stores it.
template <typename Element>
__device__ __forceinline__ float Rounded(float x) {
  return ToFloat(FromFloat<Element>(x));
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
