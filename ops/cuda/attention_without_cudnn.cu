// SPDX-License-Identifier: Apache-2.0
//
// In the place of attention_cudnn.cu where the toolkit has no cuDNN.

#include "ops/cuda/attention_engines.h"

namespace cubit {
namespace cuda {

bool CudnnAttentionForward(const AttentionForwardCall&, Stream&) {
  return false;
}

bool CudnnAttentionBackward(const AttentionBackwardCall&, Stream&) {
  return false;
}

int64_t CudnnAttentionBackwardBytes(int64_t, int64_t, int64_t, int64_t) {
  return 0;
}

}  // namespace cuda
}  // namespace cubit
