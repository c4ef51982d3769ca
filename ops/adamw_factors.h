// SPDX-License-Identifier: Apache-2.0
//
// What both back ends of adamw.h do before they touch an element.

#ifndef CUBIT_OPS_ADAMW_FACTORS_H_
#define CUBIT_OPS_ADAMW_FACTORS_H_

#include <cmath>

#include "ops/adamw.h"

namespace cubit {

// The factors of an update, computed once in double.
struct AdamWFactors {
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float m_correction;  // m_hat = m_correction m
  float v_correction;
  float epsilon;
  float learning_rate;
  float weight_decay;
};

inline AdamWFactors ComputeFactors(const AdamWStep& step) {
  const double beta1 = static_cast<double>(step.beta1);
  const double beta2 = static_cast<double>(step.beta2);
  const double count = static_cast<double>(step.step);
  AdamWFactors f;
  f.beta1 = step.beta1;
  f.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  f.beta2 = step.beta2;
  f.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  f.m_correction = static_cast<float>(1.0 / (1.0 - std::pow(beta1, count)));
  f.v_correction = static_cast<float>(1.0 / (1.0 - std::pow(beta2, count)));
  f.epsilon = step.epsilon;
  f.learning_rate = step.learning_rate;
  f.weight_decay = step.weight_decay;
  return f;
}

// CHECKs the arguments of AdamWUpdate against each other.
inline AdamWFactors CheckAdamW(const AdamWStep& step, const ConstTensor& decay,
                               const ConstTensor& grad_scale,
                               const ConstTensor& grad, const ConstTensor& m,
                               const ConstTensor& v, const ConstTensor& weight,
                               const ConstTensor& compute) {
  CUBIT_CHECK_GE(step.step, 1);
  CUBIT_CHECK_EQ(grad.shape(), m.shape());
  CUBIT_CHECK_EQ(grad.shape(), v.shape());
  CUBIT_CHECK_EQ(grad.shape(), weight.shape());
  if (!compute.empty()) CUBIT_CHECK_EQ(grad.shape(), compute.shape());
  if (!grad_scale.empty()) CUBIT_CHECK_EQ(grad_scale.num_elements(), 1);
  if (!decay.empty()) {
    CUBIT_CHECK_EQ(decay.num_elements(),
                   (grad.num_elements() + kAdamWGroup - 1) / kAdamWGroup);
  }
  return ComputeFactors(step);
}

}  // namespace cubit

#endif  // CUBIT_OPS_ADAMW_FACTORS_H_
