// SPDX-License-Identifier: Apache-2.0
//
// Rotary position encoding, half-rotation form (Su et al., arXiv:2104.09864, as
// in GPT-NeoX): element i turns with element i + K/2.

#ifndef CUBIT_OPS_ROTARY_H_
#define CUBIT_OPS_ROTARY_H_

#include <cstdint>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Fills table [T, K] fp32: cos of angle (t, i) in column i < K/2, sin in column
// K/2 + i, angle = t * base^(-2i/K), computed in double.
void RotaryTable(double base, Tensor table, Stream& stream);

// Rotates every row of x [B, T, H, K] in place by the angles of position
// first_position + t. K is even. The table must reach that far (CHECK).
void RotaryForward(ConstTensor table, int64_t first_position, HeadTensor x,
                   Stream& stream);

// The inverse rotation, in place: turns the gradient of the result into that of
// the input.
void RotaryBackward(ConstTensor table, int64_t first_position, HeadTensor d_x,
                    Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_ROTARY_H_
