// SPDX-License-Identifier: Apache-2.0
//
// QK-norm: every head's row scaled to a given length, before the rotation
// (Henry et al., arXiv:2010.04245).

#ifndef CUBIT_OPS_HEAD_NORM_H_
#define CUBIT_OPS_HEAD_NORM_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// In place, y = gain_h x / sqrt(|x|^2 + 1e-12) for every row of x [B, T, H, K].
//   gain [H] or absent (1); inv_norm [B, H, T] fp32 receives the 1 / sqrt(...),
//   kept for the backward.
void HeadNormForward(ConstTensor gain, HeadTensor x, Tensor inv_norm,
                     Stream& stream);

// d_x holds the gradient of y on entry and that of x on return; y is what the
// forward left. d_gain [H] is accumulated (absent if gain is); a gain of
// exactly zero hides the direction of x, and its head gets no gradient.
void HeadNormBackward(ConstHeadTensor y, ConstTensor gain, ConstTensor inv_norm,
                      HeadTensor d_x, Tensor d_gain, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_HEAD_NORM_H_
