// SPDX-License-Identifier: Apache-2.0
//
// The two ways of LinearGeluBackwardInput on CUDA. Their results differ in
// bits, so a rule chooses between them, not a timing (docs/decisions/0019);
// benchmarks and tests call both.

#ifndef CUBIT_OPS_CUDA_GELU_GRADIENT_H_
#define CUBIT_OPS_CUDA_GELU_GRADIENT_H_

#include <cstdint>

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

// The rule, where HasGeluEpilogue: d_y [num_rows, out], pre [num_rows, in]. The
// epilogue is for shapes at which it is measured to be faster, none so far.
GeluGradientWay ChooseGeluGradientWay(int64_t num_rows, int64_t in,
                                      int64_t out);

// LinearGeluBackwardInput of matmul.h. CHECK: `way` is kOwnPass or
// HasGeluEpilogue(pre, d_pre).
void LinearGeluBackwardInputBy(GeluGradientWay way, ConstTensor d_y,
                               ConstTensor weight, ConstTensor pre,
                               Tensor d_pre, Tensor d_bias, Stream& stream);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_GELU_GRADIENT_H_
