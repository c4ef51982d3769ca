// SPDX-License-Identifier: Apache-2.0
//
// AdamW (Loshchilov and Hutter, arXiv:1711.05101) on a flat range.

#ifndef CUBIT_OPS_ADAMW_H_
#define CUBIT_OPS_ADAMW_H_

#include <cstdint>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

struct AdamWStep {
  float learning_rate = 0;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0;  // 0 for parameters that are not decayed
  float grad_scale = 1;    // from clipping; multiplies every gradient
  int64_t step = 1;        // 1 for the first update: bias correction
};

// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2, g = grad_scale * grad
// w = w - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay w)
//   grad, m, v, weight: fp32, one shape. Deterministic.
void AdamWUpdate(const AdamWStep& step, ConstTensor grad, Tensor m, Tensor v,
                 Tensor weight, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_ADAMW_H_
