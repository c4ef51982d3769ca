// SPDX-License-Identifier: Apache-2.0
//
// Rows of a per-head matrix as a tile in shared memory: where an element lies,
// and the copy from global memory. products.cuh reads the tiles.

#ifndef CUBIT_OPS_CUDA_TILE_CUH_
#define CUBIT_OPS_CUDA_TILE_CUH_

#include <cstdint>

#include "ops/cuda/mma.cuh"
#include "ops/cuda/pairs.cuh"

namespace cubit {
namespace cuda {

// kRows x kDim elements. Offsets keep 16-byte chunks of a row together and
// spread 8 consecutive rows of one chunk over all banks:
//   bf16, kDim a multiple of 64: panels of 64 columns, rows of 128 bytes, the
//     chunk's index exclusive-or the row (what wgmma calls the 128-byte
//     swizzle);
//   otherwise rows are padded.
template <typename ElementType, int kRowsOfTile, int kDimOfTile>
struct Tile {
  using Element = ElementType;
  static constexpr int kRows = kRowsOfTile;
  static constexpr int kDim = kDimOfTile;
  static constexpr int kChunk = 16 / sizeof(Element);  // elements of 16 bytes
  static constexpr bool kSwizzled = sizeof(Element) == 2 && kDim % 64 == 0;
  static constexpr int kStride =
      kSwizzled ? 64 : kDim + (sizeof(Element) == 2 ? 8 : 4);
  static constexpr int kBytes =
      kRows * (kSwizzled ? kDim : kStride) * static_cast<int>(sizeof(Element));
  static_assert(kDim % 16 == 0, "fragments are 16 columns wide");

  // Elements from the tile's begin to (row, column).
  __device__ __forceinline__ static int Offset(int row, int column) {
    if (!kSwizzled) return row * kStride + column;
    return (column / 64) * (kRows * 64) + row * 64 +
           ((((column / 8) % 8) ^ (row % 8)) * 8) + column % 8;
  }
};

// Reads that other multiprocessors' writes may precede within one kernel: from
// the second-level cache, the first is not coherent.
__device__ __forceinline__ float LoadCoherent(const float* p) {
  return __ldcg(p);
}
__device__ __forceinline__ __nv_bfloat16 LoadCoherent(const __nv_bfloat16* p) {
  return __ushort_as_bfloat16(
      __ldcg(reinterpret_cast<const unsigned short*>(p)));
}

// CopyRows of rows that are not aligned: element by element. No part of it is
// worth registers or instructions of the kernels that call it.
template <typename TileType, int kCount, int kThreads>
__device__ __noinline__ void CopyRowsByElement(
    typename TileType::Element* tile, const typename TileType::Element* rows,
    int64_t stride, int num_rows, int dim) {
  using Element = typename TileType::Element;
  for (int i = threadIdx.x; i < kCount * TileType::kDim; i += kThreads) {
    const int row = i / TileType::kDim;
    const int column = i % TileType::kDim;
    tile[TileType::Offset(row, column)] =
        row < num_rows && column < dim
            ? LoadCoherent(rows + row * stride + column)
            : Element(0.0f);
  }
}

// CopyRows where each thread has chunks of one column, at equal distances in
// both memories. kWhole: all rows are there.
template <typename TileType, int kCount, int kThreads, bool kWhole>
__device__ __forceinline__ void CopyChunkColumn(
    typename TileType::Element* tile, const typename TileType::Element* rows,
    int64_t stride, int num_rows, int dim) {
  constexpr int kChunks = TileType::kDim / TileType::kChunk;
  constexpr int kStep = kThreads / kChunks;  // rows
  static_assert(kThreads % kChunks == 0, "chunks of one column a thread");
  static_assert(!TileType::kSwizzled || kStep % 8 == 0, "equal distances");
  constexpr int kStepBytes =
      kStep * TileType::kStride *
      static_cast<int>(sizeof(typename TileType::Element));
  const int row = static_cast<int>(threadIdx.x) / kChunks;
  const int column = static_cast<int>(threadIdx.x) % kChunks * TileType::kChunk;
  const bool in_row = column < dim;
  const uint32_t target = SharedAddress(tile + TileType::Offset(row, column));
  const typename TileType::Element* source =
      rows + row * stride + (in_row ? column : 0);
#pragma unroll
  for (int n = 0; n < (kCount + kStep - 1) / kStep; ++n) {
    const int i = row + n * kStep;
    if (kCount % kStep != 0 && i >= kCount) break;
    const bool valid = in_row && (kWhole || i < num_rows);
    CopyAsync16(target + n * kStepBytes, kWhole || valid ? source : rows,
                valid);
    source += kStep * stride;
  }
}

// Starts the copy of rows [0, num_rows) of `rows` (element (i, c) at
// rows[i * stride + c], c < dim) to the tile; the rest of its first `kCount`
// rows, and columns from dim on, become zero. `aligned`: rows and stride are
// multiples of 16 bytes and dim of a chunk; otherwise the copy is done element
// by element and complete on return. Ends without CommitCopies.
template <typename TileType, int kCount, int kThreads>
__device__ __forceinline__ void CopyRows(typename TileType::Element* tile,
                                         const typename TileType::Element* rows,
                                         int64_t stride, int num_rows, int dim,
                                         bool aligned) {
  if (!aligned) {
    return CopyRowsByElement<TileType, kCount, kThreads>(tile, rows, stride,
                                                         num_rows, dim);
  }
  constexpr int kChunks = TileType::kDim / TileType::kChunk;
  if constexpr (kThreads % kChunks == 0) {
    if (num_rows >= kCount) {
      CopyChunkColumn<TileType, kCount, kThreads, true>(tile, rows, stride,
                                                        num_rows, dim);
    } else {
      CopyChunkColumn<TileType, kCount, kThreads, false>(tile, rows, stride,
                                                         num_rows, dim);
    }
  } else {
#pragma unroll
    for (int n = 0; n < kCount * kChunks; n += kThreads) {
      const int i = n + static_cast<int>(threadIdx.x);
      if (kCount * kChunks % kThreads != 0 && i >= kCount * kChunks) break;
      const int row = i / kChunks;
      const int column = (i % kChunks) * TileType::kChunk;
      const bool valid = row < num_rows && column < dim;
      CopyAsync16(SharedAddress(tile + TileType::Offset(row, column)),
                  rows + (valid ? row * stride + column : 0), valid);
    }
  }
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_TILE_CUH_
