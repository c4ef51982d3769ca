// SPDX-License-Identifier: Apache-2.0
//
// The terms that ranks exchanged, summed.

#ifndef CUBIT_OPS_SUM_PARTS_H_
#define CUBIT_OPS_SUM_PARTS_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// y[n, d] = bias[d] + residual[n, d] + sum_p parts[p, n, d].
//   parts [P, N, D]; bias [D] or absent; residual [N, D] or absent; y [N, D],
//   may be residual; all of one dtype, fp32 or bf16 (the CPU: fp32). Added in
//   fp32 in the order parts 0 to P - 1, bias, residual, and rounded once.
//   CHECK: shapes agree, P >= 1.
void SumParts(ConstTensor parts, ConstTensor bias, ConstTensor residual,
              Tensor y, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_SUM_PARTS_H_
