// SPDX-License-Identifier: Apache-2.0
//
// The triangular system of DeltaFormer (arXiv:2505.19488): the same blocked
// solver as krr.h with another right-hand side, a strict mask and beta in place
// of the normalisation.

#ifndef CUBIT_OPS_DELTA_SOLVE_H_
#define CUBIT_OPS_DELTA_SOLVE_H_

#include "ops/attention.h"
#include "ops/solve_precision.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Solves (I + diag(beta) W) X = V for X, per head, where W is the softmax of
// scale w_i . k_j over visible j < i (a row that sees no key is zero).
//   w, k, v, x [B, T, H, K]; beta [B, T, H] as a strided view with K = 1;
//   lse [B, H, T]: log of the row's sum, -inf for a row that sees no key.
//   w, k, v, x, beta all fp32 or all bf16; `precision` as in krr.h.
// Rows before `first_row` of x and lse are taken as solved. mask.causal must be
// true. x may not alias the inputs.
void DeltaSolveForward(ConstHeadTensor w, ConstHeadTensor k, ConstHeadTensor v,
                       ConstHeadTensor beta, float scale,
                       const AttentionMask& mask, SolvePrecision precision,
                       int64_t first_row, HeadTensor x, Tensor lse,
                       Stream& stream);

// Gradients from d_x by one reverse sweep. d_w, d_k, d_v, d_beta are written;
// y [B, T, H, K] is scratch and may alias d_x.
void DeltaSolveBackward(ConstHeadTensor w, ConstHeadTensor k, ConstHeadTensor v,
                        ConstHeadTensor beta, float scale,
                        const AttentionMask& mask, SolvePrecision precision,
                        ConstHeadTensor x, ConstTensor lse, ConstHeadTensor d_x,
                        HeadTensor y, HeadTensor d_w, HeadTensor d_k,
                        HeadTensor d_v, HeadTensor d_beta, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_DELTA_SOLVE_H_
