// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/adjoint_views.h"
#include "ops/cuda/memory_pass.cuh"
#include "ops/heads.h"
#include "ops/krr.h"
#include "ops/rotary.h"
#include "runtime/check.h"

namespace cubit {
void KrrSolveBackward(ConstHeadTensor r, ConstHeadTensor v,
                      ConstTensor column_scale, ConstTensor value_scale,
                      ConstTensor log_lambda, const AttentionMask& mask,
                      SolvePrecision precision, const KrrBefore& before,
                      ConstHeadTensor x, ConstTensor lse, ConstHeadTensor d_x,
                      HeadTensor y, HeadTensor d_r, HeadTensor d_v,
                      Tensor d_column_scale, Tensor d_value_scale,
                      Tensor d_log_lambda, Tensor health, Tensor d_r_sums,
                      Tensor d_v_sums, Stream& stream) {
  const Shape per_token = {r.batch, r.num_heads, r.seq_len};
  CUBIT_CHECK(
      column_scale.shape() == per_token && value_scale.shape() == per_token &&
      d_column_scale.shape() == per_token && d_value_scale.shape() == per_token)
      << "wanted " << per_token.ToString();
  CUBIT_CHECK_SHAPE(log_lambda, {r.num_heads});
  CUBIT_CHECK_SHAPE(d_log_lambda, {r.num_heads});
  const auto heads = [&r](const ConstHeadTensor& t, const char* name) {
    return cuda::HeadsOnDevice(t, name, r, r.head_dim);
  };
  cuda::AdjointArguments in;
  in.queries = in.keys = heads(r, "r");
  in.v = heads(v, "v");
  in.x = heads(x, "x");
  in.d_x = heads(d_x, "d_x");
  in.y = heads(y, "y");
  in.d_queries = heads(d_r, "d_r");
  in.d_v = heads(d_v, "d_v");
  in.column_scale = column_scale.data<float>();
  in.value_scale = value_scale.data<float>();
  in.log_lambda = log_lambda.data<float>();
  in.d_column_scale = d_column_scale.data<float>();
  in.d_value_scale = d_value_scale.data<float>();
  in.d_log_lambda = d_log_lambda.data<float>();
  if (!health.empty()) {
    CUBIT_CHECK_SHAPE(health, {3});
    in.health = health.data<float>();
  }
  in.normalised = before.normalised;
  in.norm_epsilon = static_cast<float>(kKrrNormEpsilon);
  const bool turns = !before.rotary_table.empty();
  const bool turns_inside = turns && cuda::IsHeadDimOfKernels(r.head_dim) &&
                            cuda::IsAligned16(before.rotary_table.raw());
  if (turns) CheckRotary(before.rotary_table, 0, r);
  if (turns_inside) in.rotary_table = before.rotary_table.data<float>();
  if (!d_v_sums.empty()) {
    CUBIT_CHECK_SHAPE(d_v_sums, {r.num_heads * r.head_dim});
    in.d_v_sums = d_v_sums.data<float>();
  }
  const bool summed = cuda::RunAdjoint(in, r, mask, precision, lse, stream);
  if (turns && !turns_inside) {
    RotaryBackward(before.rotary_table, 0, d_r, stream);
  }
  if (!summed) AddHeadSums(d_v, d_v_sums, stream);
  AddHeadSums(d_r, d_r_sums, stream);
}

}  // namespace cubit
