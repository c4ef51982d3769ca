// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstdint>

#include "ops/adamw.h"
#include "ops/pieces.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

// The factors of an update, computed once in double.
struct Factors {
  float grad_scale;
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

Factors ComputeFactors(const AdamWStep& step) {
  const double beta1 = static_cast<double>(step.beta1);
  const double beta2 = static_cast<double>(step.beta2);
  const double count = static_cast<double>(step.step);
  Factors f;
  f.grad_scale = step.grad_scale;
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

void UpdateRange(const Factors& f, const float* grad, int64_t count, float* m,
                 float* v, float* weight) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = f.grad_scale * grad[i];
    m[i] = f.beta1 * m[i] + f.one_minus_beta1 * g;
    v[i] = f.beta2 * v[i] + f.one_minus_beta2 * g * g;
    const float m_hat = f.m_correction * m[i];
    const float v_hat = f.v_correction * v[i];
    weight[i] -= f.learning_rate * (m_hat / (std::sqrt(v_hat) + f.epsilon) +
                                    f.weight_decay * weight[i]);
  }
}

}  // namespace

void AdamWUpdate(const AdamWStep& step, ConstTensor grad, Tensor m, Tensor v,
                 Tensor weight, Stream&) {
  CUBIT_CHECK_GE(step.step, 1);
  CUBIT_CHECK_EQ(grad.shape(), m.shape());
  CUBIT_CHECK_EQ(grad.shape(), v.shape());
  CUBIT_CHECK_EQ(grad.shape(), weight.shape());
  const Factors factors = ComputeFactors(step);
  const float* grad_data = grad.data<float>();
  float* m_data = m.data<float>();
  float* v_data = v.data<float>();
  float* weight_data = weight.data<float>();
  ParallelFor(
      grad.num_elements(), kPieceElements, [=](int64_t begin, int64_t end) {
        UpdateRange(factors, grad_data + begin, end - begin, m_data + begin,
                    v_data + begin, weight_data + begin);
      });
}

}  // namespace cubit
