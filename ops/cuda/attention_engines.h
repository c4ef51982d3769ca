// SPDX-License-Identifier: Apache-2.0
//
// The two implementations behind attention.h on CUDA: the project's kernels,
// which serve every call, and cuDNN, which serves some (docs/decisions/0021).
// attention_cuda.cu checks arguments and chooses; benchmarks call both.

#ifndef CUBIT_OPS_CUDA_ATTENTION_ENGINES_H_
#define CUBIT_OPS_CUDA_ATTENTION_ENGINES_H_

#include "ops/attention.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {
namespace cuda {

// Arguments of AttentionForward, checked.
struct AttentionForwardCall {
  ConstHeadTensor q, k, v;
  float scale;
  AttentionMask mask;
  HeadTensor out;
  Tensor lse;
};

// Arguments of AttentionBackward, checked.
struct AttentionBackwardCall {
  ConstHeadTensor q, k, v, out;
  ConstTensor lse;
  ConstHeadTensor d_out;
  float scale;
  AttentionMask mask;
  AttentionAccumulate accumulate;
  HeadTensor d_q, d_k, d_v;
  Tensor delta;
};

void OwnAttentionForward(const AttentionForwardCall& call, Stream& stream);
void OwnAttentionBackward(const AttentionBackwardCall& call, Stream& stream);

// Return false, with nothing done, where cuDNN does not serve such a call (or
// is not part of this build): tensors must be bf16, aligned to 16 bytes, with
// Tq == Tk, the mask causal and without documents; a backward that accumulates
// is not served.
bool CudnnAttentionForward(const AttentionForwardCall& call, Stream& stream);
bool CudnnAttentionBackward(const AttentionBackwardCall& call, Stream& stream);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ATTENTION_ENGINES_H_
