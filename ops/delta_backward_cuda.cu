// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/adjoint_views.h"
#include "ops/delta_solve.h"

namespace cubit {

void DeltaSolveBackward(ConstHeadTensor w, ConstHeadTensor k, ConstHeadTensor v,
                        ConstHeadTensor beta, float scale,
                        const AttentionMask& mask, SolvePrecision precision,
                        ConstHeadTensor x, ConstTensor lse, ConstHeadTensor d_x,
                        HeadTensor y, HeadTensor d_w, HeadTensor d_k,
                        HeadTensor d_v, HeadTensor d_beta, Stream& stream) {
  const auto heads = [&w](const ConstHeadTensor& t, const char* name) {
    return cuda::HeadsOnDevice(t, name, w, w.head_dim);
  };
  cuda::AdjointArguments in;
  in.queries = heads(w, "w");
  in.keys = heads(k, "k");
  in.v = heads(v, "v");
  in.x = heads(x, "x");
  in.d_x = heads(d_x, "d_x");
  in.y = heads(y, "y");
  in.d_queries = heads(d_w, "d_w");
  in.d_keys = heads(d_k, "d_k");
  in.d_v = heads(d_v, "d_v");
  in.beta = cuda::HeadsOnDevice(beta, "beta", w, 1);
  in.d_beta = cuda::HeadsOnDevice(d_beta, "d_beta", w, 1);
  in.scale = scale;
  cuda::RunAdjoint(in, w, mask, precision, lse, stream);
}

}  // namespace cubit
