// SPDX-License-Identifier: Apache-2.0
//
// Host side of adjoint.h: views become arguments, work space is taken, and the
// kernels are chosen by element type and precision.

#ifndef CUBIT_OPS_CUDA_ADJOINT_VIEWS_H_
#define CUBIT_OPS_CUDA_ADJOINT_VIEWS_H_

#include "ops/attention.h"
#include "ops/cuda/adjoint.h"
#include "ops/solve_precision.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {
namespace cuda {

// CHECK: `x` has the extents and dtype of `like` (its head dim is `head_dim`).
DeviceHeads HeadsOnDevice(const ConstHeadTensor& x, const char* name,
                          const ConstHeadTensor& like, int64_t head_dim);

// Fills in what both systems have in common and launches. False if the sums of
// d_v are left to the caller.
bool RunAdjoint(AdjointArguments in, const ConstHeadTensor& queries,
                const AttentionMask& mask, SolvePrecision precision,
                const ConstTensor& lse, Stream& stream);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ADJOINT_VIEWS_H_
