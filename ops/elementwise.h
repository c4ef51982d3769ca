// SPDX-License-Identifier: Apache-2.0
//
// Sums and norms over whole tensors. Add, AddInPlace and ScaleInPlace take fp32
// or bf16, one dtype in a call; SumOfSquares takes fp32.

#ifndef CUBIT_OPS_ELEMENTWISE_H_
#define CUBIT_OPS_ELEMENTWISE_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// y = a + b, element by element; y may alias either.
void Add(ConstTensor a, ConstTensor b, Tensor y, Stream& stream);

// y += x.
void AddInPlace(ConstTensor x, Tensor y, Stream& stream);

// x *= factor.
void ScaleInPlace(float factor, Tensor x, Stream& stream);

// y = x in y's dtype: between fp32 and bf16, in either direction (or a copy).
// Rounds to nearest, ties to even; NaN stays NaN. One shape; no aliasing.
void Convert(ConstTensor x, Tensor y, Stream& stream);

// result[0] (fp64, one element, device memory) = sum of squares of x, in fixed
// order; NaN and Inf pass through.
void SumOfSquares(ConstTensor x, Tensor result, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_ELEMENTWISE_H_
