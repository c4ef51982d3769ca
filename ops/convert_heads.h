// SPDX-License-Identifier: Apache-2.0
//
// Strided per-head views in another dtype: how a solve in fp32 stands between
// activations in bf16.

#ifndef CUBIT_OPS_CONVERT_HEADS_H_
#define CUBIT_OPS_CONVERT_HEADS_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// y = x in y's dtype, element by element: from fp32 to bf16 (to nearest, ties
// to even; NaN stays NaN) or from bf16 to fp32. x, y [B, T, H, K]; they may not
// overlap. CHECK: one shape, two dtypes.
void ConvertHeads(ConstHeadTensor x, HeadTensor y, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_CONVERT_HEADS_H_
