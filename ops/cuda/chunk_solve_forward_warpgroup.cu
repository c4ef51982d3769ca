// SPDX-License-Identifier: Apache-2.0

// The forward solve of a chunk of KRR by the kernel of whole sequences
// (triangular_solve.cuh), which continues from the chunk's sums.

#include "ops/cuda/chunk_warpgroup.h"
#include "ops/cuda/solve_engines.h"
#include "ops/cuda/solve_launch.cuh"

namespace cubit {
namespace cuda {
namespace {

HeadStrides StridesOf(const ChunkHeads& heads) {
  return {heads.batch_stride, heads.seq_stride, heads.head_stride};
}

}  // namespace

bool ChunkSolveWarpgroup(const ChunkSolveArguments& chunk, Stream& stream) {
  const ChunkArguments& c = chunk.chunk;
  if (chunk.is_delta() || !IsDimOfWarpgroups(c.head_dim)) return false;
  for (const ChunkHeads* heads : {&c.a, &chunk.v, &c.x}) {
    if (!heads->bfloat16 || !heads->vectors) return false;
  }
  if (!c.weighted.vectors) return false;
  if (!chunk.kernel_x.empty() && !chunk.kernel_x.vectors) return false;
  SolveArguments in = {};
  in.query = in.key = c.a.data;
  in.v = chunk.v.data;
  in.x = c.x.data;
  in.query_strides = in.key_strides = StridesOf(c.a);
  in.v_strides = StridesOf(chunk.v);
  in.x_strides = StridesOf(c.x);
  in.segments = c.row_segments;
  in.lse = chunk.lse;
  in.column_scale = c.column_scale;
  in.value_scale = chunk.value_scale;
  in.log_lambda = chunk.log_lambda;
  in.num_pairs = c.batch * c.num_heads;
  in.num_heads = c.num_heads;
  in.seq_len = c.num_rows;
  in.head_dim = c.head_dim;
  in.aligned = true;
  in.start_max = c.row_max;
  in.start_sum = c.row_sum;
  in.start_weighted = static_cast<const float*>(c.weighted.data);
  in.start_strides = StridesOf(c.weighted);
  in.kernel_x = static_cast<float*>(chunk.kernel_x.data);
  in.kernel_x_strides = StridesOf(chunk.kernel_x);
  if (in.head_dim <= 64) {
    LaunchSolver<ForwardSolver<KrrSystem, BFloat16Products, 64, 4,
                               /*kWarpgroup=*/true, /*kContinues=*/true>,
                 3>(in, stream);
  } else {
    LaunchSolver<ForwardSolver<KrrSystem, BFloat16Products, 128, 4,
                               /*kWarpgroup=*/true, /*kContinues=*/true>,
                 2>(in, stream);
  }
  return true;
}

}  // namespace cuda
}  // namespace cubit
