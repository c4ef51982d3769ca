// SPDX-License-Identifier: Apache-2.0
//
// Copies and sums between strided per-head views.

#ifndef CUBIT_OPS_HEADS_H_
#define CUBIT_OPS_HEADS_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// y = x, element by element. x, y [B, T, H, K]; they may not overlap. On a GPU
// each may be fp32 or bf16, here and below; on the CPU all are fp32.
void CopyHeads(ConstHeadTensor x, HeadTensor y, Stream& stream);

// y += x, likewise.
void AddHeads(ConstHeadTensor x, HeadTensor y, Stream& stream);

// sums += the sums of x over B and T; skipped if `sums` is absent. x likewise;
// sums [H * K] fp32. In a fixed order.
void AddHeadSums(ConstHeadTensor x, Tensor sums, Stream& stream);

// y = sigmoid(x), element by element again; y may be x.
void SigmoidHeads(ConstHeadTensor x, HeadTensor y, Stream& stream);

// d_x = d_y y (1 - y) for y = sigmoid(x); d_x may be d_y.
void SigmoidHeadsBackward(ConstHeadTensor d_y, ConstHeadTensor y,
                          HeadTensor d_x, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_HEADS_H_
