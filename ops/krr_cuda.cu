// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/solve_launch.cuh"
#include "ops/krr.h"

namespace cubit {

void KrrSolveForward(ConstHeadTensor r, ConstHeadTensor v,
                     ConstTensor column_scale, ConstTensor value_scale,
                     ConstTensor log_lambda, const AttentionMask& mask,
                     SolvePrecision precision, int64_t first_row, HeadTensor x,
                     Tensor lse, Stream& stream) {
  cuda::CheckView(v, "v", r, r.head_dim);
  cuda::CheckView(x, "x", r, r.head_dim);
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(value_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(lse, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(log_lambda, {r.num_heads});
  CUBIT_CHECK(first_row >= 0 && first_row <= r.seq_len) << first_row;
  CUBIT_CHECK(mask.causal)
      << "the dense system of a mixer that is not causal is solved on the CPU "
         "alone: evaluate with --device=cpu";
  cuda::SolveArguments in =
      cuda::CommonArguments(r, r, v, mask, first_row, x, lse);
  in.column_scale = column_scale.data<float>();
  in.value_scale = value_scale.data<float>();
  in.log_lambda = log_lambda.data<float>();
  cuda::LaunchForwardSolve<cuda::KrrSystem>(r.dtype, precision, in, stream);
}

}  // namespace cubit
