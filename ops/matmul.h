// SPDX-License-Identifier: Apache-2.0
//
// Dense products of the linear layers. CPU: OpenBLAS sgemm on pieces cut by
// shape alone (one thread each), so the bits do not depend on the thread count.
// CUDA: cuBLASLt, with the algorithm that decision 0019 describes.
//
// Element types of all ops (docs/numerics.md):
//   activations, and their gradients   fp32 or bf16, one of them in a call
//   weights and biases of products     that of the activations
//   norm weights and biases, scalars of heads: fp32, the master values
//   mean, rstd, log-sum-exp, losses    fp32
//   gradients of parameters            fp32, accumulated
// Sums are taken in fp32 at least. The CPU back end computes in fp32 alone
// (CHECK).

#ifndef CUBIT_OPS_MATMUL_H_
#define CUBIT_OPS_MATMUL_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// y = x W^T + bias + residual.
//   x [N, in], weight [out, in], bias [out] or absent, residual [N, out] or
//   absent, y [N, out]; all of one dtype. y may be residual and may not alias
//   the other inputs. CHECK: shapes agree.
void LinearForward(ConstTensor x, ConstTensor weight, ConstTensor bias,
                   ConstTensor residual, Tensor y, Stream& stream);

// pre = x W^T + bias, y = GELU(pre), the tanh form of activations.h.
//   pre, y [N, out]; they alias nothing.
void LinearGeluForward(ConstTensor x, ConstTensor weight, ConstTensor bias,
                       Tensor pre, Tensor y, Stream& stream);

// d_x = d_y W, or d_x += d_y W if `accumulate`.
//   d_y [N, out], weight [out, in], d_x [N, in]; d_x may not alias d_y.
void LinearBackwardInput(ConstTensor d_y, ConstTensor weight, bool accumulate,
                         Tensor d_x, Stream& stream);

// d_pre = (d_y W) GELU'(pre): through a linear layer whose input was GELU(pre).
// d_bias += column sums of d_pre, which is the gradient of the bias of the
// layer that made pre (skipped if absent); summed in a fixed order.
//   d_y [N, out], weight [out, in], pre and d_pre [N, in], d_bias [in] in fp32;
//   d_pre may not alias d_y or pre. CHECK: shapes agree.
// On CUDA, d_y W is rounded to the activations' type before it is multiplied,
// unless cuBLASLt multiplies (docs/decisions/0019).
void LinearGeluBackwardInput(ConstTensor d_y, ConstTensor weight,
                             ConstTensor pre, Tensor d_pre, Tensor d_bias,
                             Stream& stream);

// d_weight = d_y^T x, added to d_weight if `accumulate`; d_bias as in
// LinearBackwardBias.
//   d_y [N, out], x [N, in]; d_weight [out, in], d_bias [out] in fp32.
//   Summed in a fixed order.
void LinearBackwardWeight(ConstTensor d_y, ConstTensor x, bool accumulate,
                          Tensor d_weight, Tensor d_bias, Stream& stream);

// d_bias += column sums of d_y (skipped if absent), in a fixed order.
//   d_y [N, out]; d_bias [out] in fp32.
void LinearBackwardBias(ConstTensor d_y, Tensor d_bias, Stream& stream);

// For a long run: every kind of product that was computed so far chooses its
// algorithm again when it is computed next, by what each takes under load, when
// the GPU's power sets its clock (docs/decisions/0034). No result changes.
// Costs about a second for each kind, once; returns how many there are (the CPU
// has none).
int ChooseProductsUnderLoad();

}  // namespace cubit

#endif  // CUBIT_OPS_MATMUL_H_
