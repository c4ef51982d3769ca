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

}  // namespace cuda
}  // namespace cubit
