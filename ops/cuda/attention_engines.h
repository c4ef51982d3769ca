// SPDX-License-Identifier: Apache-2.0
//
// The two implementations behind attention.h on CUDA: the project's kernels,
// which serve every call, and cuDNN, which serves some (docs/decisions/0021).
// attention_cuda.cu checks arguments and chooses; benchmarks call both.

#ifndef CUBIT_OPS_CUDA_ATTENTION_ENGINES_H_
#define CUBIT_OPS_CUDA_ATTENTION_ENGINES_H_

#include <cstdint>

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
// Tq == Tk, the mask causal and without documents; a backward that accumulates,
// or needs too much work space, is not served.
bool CudnnAttentionForward(const AttentionForwardCall& call, Stream& stream);
bool CudnnAttentionBackward(const AttentionBackwardCall& call, Stream& stream);

// Work space of a CudnnAttentionBackward that is served, in bytes: the backward
// that repeats bit for bit keeps a number for every score, B H T^2 bf16. Found
// by what an H200 showed beside plans without it (cuDNN of CUDA 13.0, T 1,024
// and 8,192, K 64 and 128: equal to 0.2%). 0 where it would be more than 8 GiB,
// which is not served, and where cuDNN is not part of the build. Asks no
// device.
int64_t CudnnAttentionBackwardBytes(int64_t batch, int64_t num_heads,
                                    int64_t seq_len);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ATTENTION_ENGINES_H_
