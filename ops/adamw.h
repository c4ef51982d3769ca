// SPDX-License-Identifier: Apache-2.0
//
// AdamW (Loshchilov and Hutter, arXiv:1711.05101) on a flat range: all
// parameters of a model in one pass, and nothing that the host must wait for.

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
  float weight_decay = 0;
  int64_t step = 1;  // 1 for the first update: bias correction
};

// Weight decay is on or off for so many adjacent elements at a time.
constexpr int64_t kAdamWGroup = 64;

// sum[0] = terms[0] + terms[1] + ..., in this order; 0 for no terms.
//   terms [n] fp64, sum [1] fp64; no aliasing. For a few hundred terms.
void SumInOrder(ConstTensor terms, Tensor sum, Stream& stream);

// scale[0] = min(1, max_norm / norm), norm = sqrt(sum_of_squares[0]): what
// clipping by the global norm multiplies gradients with. 1 if max_norm is 0 (no
// clipping); NaN if the norm is not finite.
//   sum_of_squares [1] fp64, scale [1] fp32.
void ClipScale(ConstTensor sum_of_squares, double max_norm, Tensor scale,
               Stream& stream);

// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2, g = grad_scale * grad
// w = w - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay w)
//   decay: uint8, element i / kAdamWGroup says (1 or 0) whether weight i is
//   decayed; absent: all are. grad_scale: [1] fp32 (ClipScale) or absent (1);
//   if it is NaN, nothing at all is changed. grad, m, v, weight: [n] fp32.
//   compute: [n] bf16, becomes the new weight, rounded; or absent.
// Deterministic.
void AdamWUpdate(const AdamWStep& step, ConstTensor decay,
                 ConstTensor grad_scale, ConstTensor grad, Tensor m, Tensor v,
                 Tensor weight, Tensor compute, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_ADAMW_H_
