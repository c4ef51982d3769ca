// SPDX-License-Identifier: Apache-2.0
//
// The mathematics of adamw.h for one element, for T = float, double and
// std::complex<double>.

#ifndef CUBIT_OPS_ADAMW_REFERENCE_H_
#define CUBIT_OPS_ADAMW_REFERENCE_H_

#include <cmath>
#include <complex>

#include "ops/adamw.h"

namespace cubit {
namespace reference {

template <typename T>
struct AdamWElement {
  T m;
  T v;
  T weight;
};

template <typename T>
AdamWElement<T> AdamWUpdate(const AdamWStep& step, bool decay,
                            double grad_scale, T grad,
                            const AdamWElement<T>& old) {
  using std::sqrt;
  const double beta1 = static_cast<double>(step.beta1);
  const double beta2 = static_cast<double>(step.beta2);
  const double count = static_cast<double>(step.step);
  const T g = T(grad_scale) * grad;
  AdamWElement<T> result;
  result.m = T(beta1) * old.m + T(1 - beta1) * g;
  result.v = T(beta2) * old.v + T(1 - beta2) * g * g;
  const T m_hat = result.m / T(1 - std::pow(beta1, count));
  const T v_hat = result.v / T(1 - std::pow(beta2, count));
  result.weight =
      old.weight - T(step.learning_rate) *
                       (m_hat / (sqrt(v_hat) + T(step.epsilon)) +
                        T(decay ? step.weight_decay : 0.0f) * old.weight);
  return result;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_ADAMW_REFERENCE_H_
