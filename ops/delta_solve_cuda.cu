// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/solve_launch.cuh"
#include "ops/delta_solve.h"

namespace cubit {

void DeltaSolveForward(ConstHeadTensor w, ConstHeadTensor k, ConstHeadTensor v,
                       ConstHeadTensor beta, float scale,
                       const AttentionMask& mask, SolvePrecision precision,
                       int64_t first_row, HeadTensor x, Tensor lse,
                       Stream& stream) {
  cuda::CheckView(k, "k", w, w.head_dim);
  cuda::CheckView(v, "v", w, w.head_dim);
  cuda::CheckView(x, "x", w, w.head_dim);
  cuda::CheckView(beta, "beta", w, 1);
  CUBIT_CHECK_SHAPE(lse, {w.batch, w.num_heads, w.seq_len});
  CUBIT_CHECK(first_row >= 0 && first_row <= w.seq_len) << first_row;
  CUBIT_CHECK(mask.causal) << "the Delta system is triangular";
  cuda::SolveArguments in =
      cuda::CommonArguments(w, k, v, mask, first_row, x, lse);
  in.beta = beta.data;
  in.beta_strides = cuda::StridesOf(beta);
  in.scale = scale;
  cuda::LaunchForwardSolve<cuda::DeltaSystem>(w.dtype, precision, in, stream);
}

}  // namespace cubit
