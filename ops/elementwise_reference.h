// SPDX-License-Identifier: Apache-2.0
//
// The mathematics of elementwise.h, for T = float, double and
// std::complex<double>.

#ifndef CUBIT_OPS_ELEMENTWISE_REFERENCE_H_
#define CUBIT_OPS_ELEMENTWISE_REFERENCE_H_

#include <cmath>
#include <cstddef>
#include <vector>

namespace cubit {
namespace reference {

template <typename T>
std::vector<T> Add(const std::vector<T>& a, const std::vector<T>& b) {
  std::vector<T> y(a.size());
  for (size_t i = 0; i < a.size(); ++i) y[i] = a[i] + b[i];
  return y;
}

template <typename T>
std::vector<T> Scale(T factor, const std::vector<T>& x) {
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = factor * x[i];
  return y;
}

// What rounding fp32 to bf16 and back leaves: 8 significant bits, to nearest,
// ties to even. Finite values whose result is a normal number.
inline double RoundToBFloat16(double x) {
  int exponent = 0;
  const double mantissa = std::frexp(x, &exponent);  // in [0.5, 1)
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8);
}

template <typename T>
T SumOfSquares(const std::vector<T>& x) {
  T sum = T(0);
  for (const T& value : x) sum += value * value;
  return sum;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_ELEMENTWISE_REFERENCE_H_
