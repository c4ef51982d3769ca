// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "ops/adamw.h"
#include "ops/adamw_factors.h"
#include "ops/pieces.h"
#include "runtime/bfloat16.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

static_assert(kPieceElements % kAdamWGroup == 0,
              "a piece begins where a group does");

void UpdateRange(const AdamWFactors& f, float grad_scale, float weight_decay,
                 const float* grad, int64_t count, float* m, float* v,
                 float* weight) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = grad_scale * grad[i];
    m[i] = f.beta1 * m[i] + f.one_minus_beta1 * g;
    v[i] = f.beta2 * v[i] + f.one_minus_beta2 * g * g;
    const float m_hat = f.m_correction * m[i];
    const float v_hat = f.v_correction * v[i];
    weight[i] -= f.learning_rate * (m_hat / (std::sqrt(v_hat) + f.epsilon) +
                                    weight_decay * weight[i]);
  }
}

struct Arrays {
  const uint8_t* decay;  // null: all are decayed
  const float* grad;
  float* m;
  float* v;
  float* weight;
  BFloat16* compute;  // null: none
};

// [begin, end), `begin` where a group begins.
void UpdatePiece(const AdamWFactors& factors, float grad_scale, const Arrays& a,
                 int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kAdamWGroup) {
    const bool decayed = a.decay == nullptr || a.decay[i / kAdamWGroup] != 0;
    UpdateRange(factors, grad_scale, decayed ? factors.weight_decay : 0.0f,
                a.grad + i, std::min(kAdamWGroup, end - i), a.m + i, a.v + i,
                a.weight + i);
  }
  if (a.compute == nullptr) return;
  for (int64_t i = begin; i < end; ++i) {
    a.compute[i] = ToBFloat16(a.weight[i]);
  }
}

}  // namespace

void SumInOrder(ConstTensor terms, Tensor sum, Stream&) {
  CUBIT_CHECK_EQ(sum.num_elements(), 1);
  const double* data = terms.data<double>();
  double total = 0;
  for (int64_t i = 0; i < terms.num_elements(); ++i) total += data[i];
  *sum.data<double>() = total;
}

void ClipScale(ConstTensor sum_of_squares, double max_norm, Tensor scale,
               Stream&) {
  CUBIT_CHECK_EQ(sum_of_squares.num_elements(), 1);
  CUBIT_CHECK_EQ(scale.num_elements(), 1);
  const double norm = std::sqrt(*sum_of_squares.data<double>());
  float* result = scale.data<float>();
  if (!std::isfinite(norm)) {
    *result = std::numeric_limits<float>::quiet_NaN();
  } else if (max_norm > 0 && norm > max_norm) {
    *result = static_cast<float>(max_norm / norm);
  } else {
    *result = 1.0f;
  }
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void AdamWUpdate(const AdamWStep& step, ConstTensor decay,
                 ConstTensor grad_scale, ConstTensor grad, Tensor m, Tensor v,
                 Tensor weight, Tensor compute, Stream&) {
  const AdamWFactors factors =
      CheckAdamW(step, decay, grad_scale, grad, m, v, weight, compute);
  const float scale = grad_scale.empty() ? 1.0f : *grad_scale.data<float>();
  if (std::isnan(scale)) return;
  Arrays arrays;
  arrays.decay = decay.empty() ? nullptr : decay.data<uint8_t>();
  arrays.grad = grad.data<float>();
  arrays.m = m.data<float>();
  arrays.v = v.data<float>();
  arrays.weight = weight.data<float>();
  arrays.compute = compute.empty() ? nullptr : compute.data<BFloat16>();
  ParallelFor(grad.num_elements(), kPieceElements,
              [=](int64_t begin, int64_t end) {
                UpdatePiece(factors, scale, arrays, begin, end);
              });
}

}  // namespace cubit
