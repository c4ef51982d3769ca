// SPDX-License-Identifier: Apache-2.0
//
// The two ways of LinearGeluBackwardInput on CUDA. Their results differ in
// bits, so the epilogue is left only where it is slower by far: where cuBLASLt
// has an old kernel for it, not where times are close (docs/decisions/0019).
// Benchmarks and tests call both.

#ifndef CUBIT_OPS_CUDA_GELU_GRADIENT_H_
#define CUBIT_OPS_CUDA_GELU_GRADIENT_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {
namespace cuda {

enum class GeluGradientWay {
  // cuBLASLt multiplies its fp32 sums by GELU'(pre); the sums for the bias are
  // a pass over the result.
  kEpilogue,
  // The product is stored in the activations' type; a pass multiplies it in
  // place and sums the columns of what it stores.
  kOwnPass,
};

// Whether cuBLASLt has products with GELU in the epilogue for [N, width] `pre`
// and `other`: both bf16, and rows begin at 16 bytes.
bool HasGeluEpilogue(const ConstTensor& pre, const ConstTensor& other);

// The epilogue and its sums may take this many times as long as the product and
// its pass. A border that two runs do not fall on both sides of: products as
// measured lie well below or above (docs/decisions/0019).
constexpr double kGeluEpilogueMayTake = 1.15;

// The rule, given the times of both ways, sums included.
constexpr GeluGradientWay GeluGradientWayByTimes(double epilogue,
                                                 double own_pass) {
  return epilogue > kGeluEpilogueMayTake * own_pass
             ? GeluGradientWay::kOwnPass
             : GeluGradientWay::kEpilogue;
}

// The way for operands of LinearGeluBackwardInput. A shape that is first seen
// is timed, which writes d_pre and waits for the device, and its way is kept
// for the process. The epilogue without timing: products too small to be worth
// it, and, not kept, an unseen shape while a CUDA graph is captured. The own
// pass without timing: !HasGeluEpilogue(pre, d_pre). CHECK: shapes agree.
GeluGradientWay ChooseGeluGradientWay(ConstTensor d_y, ConstTensor weight,
                                      ConstTensor pre, Tensor d_pre,
                                      Stream& stream);

// LinearGeluBackwardInput of matmul.h. CHECK: `way` is kOwnPass or
// HasGeluEpilogue(pre, d_pre).
void LinearGeluBackwardInputBy(GeluGradientWay way, ConstTensor d_y,
                               ConstTensor weight, ConstTensor pre,
                               Tensor d_pre, Tensor d_bias, Stream& stream);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_GELU_GRADIENT_H_
