// SPDX-License-Identifier: Apache-2.0
//
// The mathematics of activations.h, one element at a time, for T = float,
// double and std::complex<double>.

#ifndef CUBIT_OPS_ACTIVATIONS_REFERENCE_H_
#define CUBIT_OPS_ACTIVATIONS_REFERENCE_H_

#include <cmath>
#include <complex>

namespace cubit {
namespace reference {

// sqrt(2 / pi) (x + 0.044715 x^3).
template <typename T>
T GeluInner(T x) {
  constexpr double kSqrtTwoOverPi = 0.79788456080286535588;
  return T(kSqrtTwoOverPi) * (x + T(0.044715) * x * x * x);
}

template <typename T>
T Gelu(T x) {
  using std::tanh;
  return T(0.5) * x * (T(1) + tanh(GeluInner(x)));
}

template <typename T>
T GeluDerivative(T x) {
  using std::tanh;
  constexpr double kSqrtTwoOverPi = 0.79788456080286535588;
  const T t = tanh(GeluInner(x));
  const T slope = T(kSqrtTwoOverPi) * (T(1) + T(3 * 0.044715) * x * x);
  return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * slope;
}

template <typename T>
T Sigmoid(T x) {
  using std::exp;
  return T(1) / (T(1) + exp(-x));
}

// silu(gate) * up.
template <typename T>
T SwiGlu(T gate, T up) {
  return gate * Sigmoid(gate) * up;
}

template <typename T>
struct SwiGluGradient {
  T d_gate;
  T d_up;
};

template <typename T>
SwiGluGradient<T> SwiGluBackward(T d_y, T gate, T up) {
  const T s = Sigmoid(gate);
  return {d_y * up * (s + gate * s * (T(1) - s)), d_y * gate * s};
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_ACTIVATIONS_REFERENCE_H_
