// SPDX-License-Identifier: Apache-2.0
//
// Pointwise non-linearities of the MLP. All tensors of a call are fp32 or all
// are bf16.

#ifndef CUBIT_OPS_ACTIVATIONS_H_
#define CUBIT_OPS_ACTIVATIONS_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): the tanh form of GELU
// (Hendrycks and Gimpel, arXiv:1606.08415). x, y of one shape; may alias.
void GeluForward(ConstTensor x, Tensor y, Stream& stream);

// d_x = d_y GELU'(x). d_x may alias d_y.
void GeluBackward(ConstTensor d_y, ConstTensor x, Tensor d_x, Stream& stream);

// SwiGLU (Shazeer, arXiv:2002.05202): x [N, 2F] holds gate (first F columns)
// and up; y [N, F] = silu(gate) * up.
void SwiGluForward(ConstTensor x, Tensor y, Stream& stream);

// d_y [N, F], x [N, 2F] -> d_x [N, 2F]. d_x may alias x.
void SwiGluBackward(ConstTensor d_y, ConstTensor x, Tensor d_x, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_ACTIVATIONS_H_
