// SPDX-License-Identifier: Apache-2.0
//
// Dense products of the linear layers. CPU: OpenBLAS sgemm on pieces cut by
// shape alone (one thread each), so the bits do not depend on the thread count.

#ifndef CUBIT_OPS_MATMUL_H_
#define CUBIT_OPS_MATMUL_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// y = x W^T + bias.
//   x [N, in], weight [out, in], bias [out] or absent, y [N, out]; all of one
//   dtype. y may not alias the inputs. CHECK: shapes agree.
void LinearForward(ConstTensor x, ConstTensor weight, ConstTensor bias,
                   Tensor y, Stream& stream);

// d_x = d_y W, or d_x += d_y W if `accumulate`.
//   d_y [N, out], weight [out, in], d_x [N, in]; d_x may not alias d_y.
void LinearBackwardInput(ConstTensor d_y, ConstTensor weight, bool accumulate,
                         Tensor d_x, Stream& stream);

// d_weight += d_y^T x; d_bias += column sums of d_y (skipped if absent).
//   d_y [N, out], x [N, in]; d_weight [out, in], d_bias [out] in fp32.
//   Summed in a fixed order.
void LinearBackwardWeight(ConstTensor d_y, ConstTensor x, Tensor d_weight,
                          Tensor d_bias, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_MATMUL_H_
