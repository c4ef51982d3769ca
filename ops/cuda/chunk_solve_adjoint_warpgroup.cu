// SPDX-License-Identifier: Apache-2.0

// The adjoint solve of a chunk of KRR by the kernel of whole sequences
// (adjoint_solve.cuh).

#include "ops/cuda/adjoint_launch.cuh"
#include "ops/cuda/chunk_warpgroup.h"
#include "ops/cuda/solve_engines.h"

namespace cubit {
namespace cuda {
namespace {

DeviceHeads OnDevice(const ChunkHeads& heads) {
  return {heads.data, heads.batch_stride, heads.seq_stride, heads.head_stride,
          heads.vectors};
}

}  // namespace

bool ChunkAdjointSolveWarpgroup(const ChunkSolveArguments& chunk,
                                cudaStream_t stream) {
  const ChunkArguments& c = chunk.chunk;
  if (chunk.is_delta() || !IsDimOfWarpgroups(c.head_dim)) return false;
  for (const ChunkHeads* heads : {&c.a, &c.y}) {
    if (!heads->bfloat16 || !heads->vectors) return false;
  }
  if (!chunk.g.vectors) return false;
  AdjointArguments in;
  in.batch = c.batch;
  in.num_heads = c.num_heads;
  in.seq_len = c.num_rows;
  in.head_dim = c.head_dim;
  in.queries = in.keys = OnDevice(c.a);
  in.d_x = OnDevice(chunk.g);
  in.y = OnDevice(c.y);
  in.segments = c.row_segments;
  in.lse = c.lse;
  in.column_scale = c.column_scale;
  in.log_lambda = chunk.log_lambda;
  in.queue = chunk.queue;
  if (in.head_dim <= 64) {
    LaunchAdjointSolve<BFloat16Products, 64, /*kWarpgroup=*/true,
                       /*kOnlyY=*/true>(in, stream);
  } else {
    LaunchAdjointSolve<BFloat16Products, 128, /*kWarpgroup=*/true,
                       /*kOnlyY=*/true>(in, stream);
  }
  return true;
}

}  // namespace cuda
}  // namespace cubit
