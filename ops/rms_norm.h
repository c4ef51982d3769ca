// SPDX-License-Identifier: Apache-2.0
//
// Root-mean-square normalisation (Zhang and Sennrich, arXiv:1910.07467).

#ifndef CUBIT_OPS_RMS_NORM_H_
#define CUBIT_OPS_RMS_NORM_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// y = x rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), per row.
//   x, y [N, D] fp32 or bf16; weight [D] fp32; rstd [N] fp32, kept for the
//   backward. y may alias x only if x is not needed again.
void RmsNormForward(ConstTensor x, ConstTensor weight, float eps, Tensor y,
                    Tensor rstd, Stream& stream);

// Adds to d_x [N, D], d_weight [D] fp32 and d_x_sums [D] fp32 or absent, all as
// LayerNormBackward does.
void RmsNormBackward(ConstTensor d_y, ConstTensor x, ConstTensor weight,
                     ConstTensor rstd, Tensor d_x, Tensor d_weight,
                     Tensor d_x_sums, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_RMS_NORM_H_
