// SPDX-License-Identifier: Apache-2.0
//
// Layer normalisation over the last dim (Ba et al., arXiv:1607.06450), fused
// with the residual addition before it.

#ifndef CUBIT_OPS_LAYER_NORM_H_
#define CUBIT_OPS_LAYER_NORM_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// y = (x - mean) rstd * weight + bias, per row; rstd = 1 / sqrt(var + eps), var
// the biased variance.
//   x, y [N, D] fp32 or bf16; weight [D] fp32; bias [D] fp32 or absent; mean,
//   rstd [N] fp32, kept for the backward. y may alias x only if x is not needed
//   again.
void LayerNormForward(ConstTensor x, ConstTensor weight, ConstTensor bias,
                      float eps, Tensor y, Tensor mean, Tensor rstd,
                      Stream& stream);

// Adds the gradient of y to d_x, d_weight and d_bias (absent if bias was):
// d_x is accumulated because the residual stream already carries a gradient.
// d_x_sums, if not absent, += column sums of d_x as it then is, rounded to its
// dtype: the gradient of a bias that was added where x came from.
//   d_y, x, d_x [N, D] of one dtype; d_weight, d_bias, d_x_sums [D] fp32,
//   summed in a fixed order.
//   d_x may not alias d_y, nor one gradient another.
void LayerNormBackward(ConstTensor d_y, ConstTensor x, ConstTensor weight,
                       ConstTensor mean, ConstTensor rstd, Tensor d_x,
                       Tensor d_weight, Tensor d_bias, Tensor d_x_sums,
                       Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_LAYER_NORM_H_
