// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of chunk_arguments.h share: elements of either dtype as
// floats, tiles of them in the products' dtype, masks, and sums over a quad.

#ifndef CUBIT_OPS_CUDA_CHUNK_TILES_CUH_
#define CUBIT_OPS_CUDA_CHUNK_TILES_CUH_

#include <cstdint>

#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_mask.h"
#include "ops/cuda/lanes.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tile.cuh"

namespace cubit {
namespace cuda {

// Element `index` of memory that is of the heads' dtype.
__device__ __forceinline__ float ChunkElement(const ChunkHeads& heads,
                                              int64_t index) {
  if (!heads.bfloat16) {
    return LoadCoherent(static_cast<const float*>(heads.data) + index);
  }
  return __bfloat162float(
      LoadCoherent(static_cast<const __nv_bfloat16*>(heads.data) + index));
}
__device__ __forceinline__ void StoreChunkElement(float value,
                                                  const ChunkHeads& heads,
                                                  int64_t index) {
  if (heads.bfloat16) {
    static_cast<__nv_bfloat16*>(heads.data)[index] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(heads.data)[index] = value;
  }
}
// First element of a row.
__device__ __forceinline__ int64_t ChunkRowOffset(const ChunkHeads& heads,
                                                  int b, int h, int row) {
  return b * heads.batch_stride + h * heads.head_stride +
         row * heads.seq_stride;
}

// Four neighbouring elements, from the second-level cache as LoadCoherent.
__device__ __forceinline__ float4 LoadFour(const float* source) {
  return __ldcg(reinterpret_cast<const float4*>(source));
}
__device__ __forceinline__ float4 LoadFour(const __nv_bfloat16* source) {
  const uint2 x = __ldcg(reinterpret_cast<const uint2*>(source));
  return make_float4(
      __uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u),
      __uint_as_float(x.y << 16), __uint_as_float(x.y & 0xffff0000u));
}
__device__ __forceinline__ void StoreFour(float4 x, float* target) {
  *reinterpret_cast<float4*>(target) = x;
}
__device__ __forceinline__ void StoreFour(float4 x, __nv_bfloat16* target) {
  *reinterpret_cast<uint2*>(target) =
      make_uint2(PackBFloat16(x.x, x.y), PackBFloat16(x.z, x.w));
}

// CopyRows in tile.cuh for rows of another dtype than the tile's. Complete on
// return.
template <typename TileType, typename Source, int kThreads>
__device__ __forceinline__ void ConvertRows(typename TileType::Element* tile,
                                            const Source* rows, int64_t stride,
                                            int num_rows, int dim,
                                            bool vectors) {
  using Element = typename TileType::Element;
  if (!vectors) {
    for (int i = threadIdx.x; i < TileType::kRows * TileType::kDim;
         i += kThreads) {
      const int row = i / TileType::kDim;
      const int column = i % TileType::kDim;
      float value = 0;
      if (row < num_rows && column < dim) {
        value = static_cast<float>(LoadCoherent(rows + row * stride + column));
      }
      tile[TileType::Offset(row, column)] = Element(value);
    }
    return;
  }
  // Four elements of a row stay together in both layouts.
  constexpr int kFours = TileType::kDim / 4;
#pragma unroll 4
  for (int i = threadIdx.x; i < TileType::kRows * kFours; i += kThreads) {
    const int row = i / kFours;
    const int column = i % kFours * 4;
    float4 x = make_float4(0, 0, 0, 0);
    if (row < num_rows && column < dim) {
      x = LoadFour(rows + row * stride + column);
    }
    StoreFour(x, tile + TileType::Offset(row, column));
  }
}

// Starts the copy of rows [row, row + TileType::kRows) of head (b, h), zeros
// beyond `seq_len` and the head dim. Whoever reads the tile waits for the
// committed copies and for all threads.
template <typename TileType, int kThreads = kChunkThreads>
__device__ __forceinline__ void CopyChunkRows(
    const ChunkHeads& heads, int b, int h, int row, int seq_len, int head_dim,
    typename TileType::Element* tile) {
  using Element = typename TileType::Element;
  constexpr bool kNarrow = sizeof(Element) == 2;
  const int64_t offset = ChunkRowOffset(heads, b, h, row);
  if (heads.bfloat16 == kNarrow) {
    CopyRows<TileType, TileType::kRows, kThreads>(
        tile, static_cast<const Element*>(heads.data) + offset,
        heads.seq_stride, seq_len - row, head_dim, heads.vectors);
  } else if (kNarrow) {
    ConvertRows<TileType, float, kThreads>(
        tile, static_cast<const float*>(heads.data) + offset, heads.seq_stride,
        seq_len - row, head_dim, heads.vectors);
  } else {
    ConvertRows<TileType, __nv_bfloat16, kThreads>(
        tile, static_cast<const __nv_bfloat16*>(heads.data) + offset,
        heads.seq_stride, seq_len - row, head_dim, heads.vectors);
  }
}

__device__ __forceinline__ ChunkMaskView MaskOf(const ChunkArguments& in,
                                                int b) {
  ChunkMaskView mask;
  mask.row_segments = nullptr;
  mask.column_segments = nullptr;
  if (in.row_segments != nullptr) {
    mask.row_segments = in.row_segments + static_cast<int64_t>(b) * in.num_rows;
    mask.column_segments =
        in.column_segments + static_cast<int64_t>(b) * in.num_columns;
  }
  mask.num_rows = in.num_rows;
  mask.num_columns = in.num_columns;
  mask.diagonal = in.diagonal;
  mask.strict = in.strict;
  return mask;
}

// c_j of pair b H + h.
__device__ __forceinline__ float ColumnScale(const ChunkArguments& in, int pair,
                                             int column) {
  return in.column_scale == nullptr
             ? in.scale
             : in.column_scale[static_cast<int64_t>(pair) * in.num_columns +
                               column];
}
// f_i.
__device__ __forceinline__ float RowFactor(const ChunkArguments& in, int b,
                                           int h, int row) {
  if (in.beta.empty()) return in.row_factor;
  return in.row_factor *
         ChunkElement(in.beta, ChunkRowOffset(in.beta, b, h, row));
}

// Whether S_ii is the largest score of every row, so that row_max is known from
// the start (chunked_solve.h). `first`: any row of the head, whose column_scale
// has one sign.
__device__ __forceinline__ bool KeepsRowMax(const float* row_scale,
                                            int64_t first) {
  return row_scale != nullptr && row_scale[first] > 0;
}

// e^x.
__device__ __forceinline__ float ChunkExp(float x) { return Exp2(x * kLog2E); }

// Accumulators of one row (half 0: lane / 4, half 1: + 8) and the row of
// `heads` that they belong to: body(accumulator, element index).
template <int kDim, typename Body>
__device__ __forceinline__ void ForEachOfRow(float (&c)[kDim / 8][4], int half,
                                             int head_dim, int64_t row_offset,
                                             const Body& body) {
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int column = n * 8 + threadIdx.x % 4 * 2 + side;
      if (column < head_dim) body(c[n][2 * half + side], row_offset + column);
    }
  }
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_TILES_CUH_
