// SPDX-License-Identifier: Apache-2.0
//
// Passes over the rows of a chunk, one warp a row: what the chunk ops do
// before and after the pairs.

#ifndef CUBIT_OPS_CUDA_CHUNK_ROWS_CUH_
#define CUBIT_OPS_CUDA_CHUNK_ROWS_CUH_

#include <cstdint>

#include "ops/cuda/chunk_launch.cuh"
#include "ops/cuda/chunk_tiles.cuh"
#include "ops/cuda/memory_pass.cuh"

namespace cubit {
namespace cuda {

// A row of head (b, h); `scalar` is its place in [B, H, T].
struct ChunkRowPlace {
  int b, h, row;
  int64_t scalar;

  __device__ __forceinline__ int64_t In(const ChunkHeads& heads) const {
    return ChunkRowOffset(heads, b, h, row);
  }
};

// Extents of a chunk.
struct ChunkExtents {
  int batch, num_heads, seq_len, head_dim;
};
inline ChunkExtents ExtentsOf(const ConstHeadTensor& x) {
  return {static_cast<int>(x.batch), static_cast<int>(x.num_heads),
          static_cast<int>(x.seq_len), static_cast<int>(x.head_dim)};
}

// Called by a whole warp: sum of the products of two rows, the same in all
// lanes. Sum: float or double.
template <typename Sum>
__device__ __forceinline__ Sum RowDot(const ChunkHeads& x, const ChunkHeads& y,
                                      const ChunkRowPlace& place,
                                      int head_dim) {
  Sum sum = 0;
  for (int c = threadIdx.x % kWarpSize; c < head_dim; c += kWarpSize) {
    sum += static_cast<Sum>(ChunkElement(x, place.In(x) + c)) *
           static_cast<Sum>(ChunkElement(y, place.In(y) + c));
  }
  return WarpSum(sum);
}

// What a pass is called with: its own arguments and the chunk's extents.
template <typename Body>
struct ChunkRowsArguments {
  ChunkExtents extents;
  Body body;
};

// Grid (blocks of kChunkRows rows, B H). body.Start(extents, pair) by all
// threads, then body(place, head_dim) by one warp for every row.
template <typename Body>
__global__ void __launch_bounds__(kChunkThreads)
    ChunkRowsKernel(const __grid_constant__ ChunkRowsArguments<Body> in) {
  const ChunkExtents& extents = in.extents;
  const int pair = blockIdx.y;
  Body body = in.body;
  body.Start(extents, pair);
  const int first = blockIdx.x * kChunkRows;
  const int end = min(first + kChunkRows, extents.seq_len);
  constexpr int kWarps = kChunkThreads / kWarpSize;
  for (int row = first + static_cast<int>(threadIdx.x) / kWarpSize; row < end;
       row += kWarps) {
    ChunkRowPlace place;
    place.b = pair / extents.num_heads;
    place.h = pair % extents.num_heads;
    place.row = row;
    place.scalar = static_cast<int64_t>(pair) * extents.seq_len + row;
    body(place, extents.head_dim);
  }
}

template <typename Body>
void LaunchChunkRowsPass(const ChunkExtents& extents, const Body& body,
                         cudaStream_t stream) {
  const int pairs = extents.batch * extents.num_heads;
  if (pairs == 0 || extents.seq_len == 0) return;
  LaunchChunkKernel(
      ChunkRowsKernel<Body>, ChunkRowsArguments<Body>{extents, body},
      dim3(ChunkBlocks(extents.seq_len), static_cast<unsigned>(pairs)),
      /*shared_bytes=*/0, stream);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_ROWS_CUH_
