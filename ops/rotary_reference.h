// SPDX-License-Identifier: Apache-2.0
//
// Plain formulas of rotary.h, one head: for tests.

#ifndef CUBIT_OPS_ROTARY_REFERENCE_H_
#define CUBIT_OPS_ROTARY_REFERENCE_H_

#include <cmath>
#include <cstdint>

#include "ops/reference_matrix.h"

namespace cubit {
namespace reference {

// Rotates row t by the angles of position first_position + t; `direction` -1
// turns back, which is also the gradient (a rotation's transpose is its
// inverse).
template <typename T>
Matrix<T> Rotary(const Matrix<T>& x, double base, int64_t first_position,
                 int direction) {
  const int64_t half = x.columns() / 2;
  Matrix<T> y(x.rows(), x.columns());
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(first_position + t) *
                           std::pow(base, -2.0 * static_cast<double>(i) /
                                              static_cast<double>(x.columns()));
      const T cosine = static_cast<T>(std::cos(angle));
      const T sine = static_cast<T>(direction * std::sin(angle));
      y(t, i) = x(t, i) * cosine - x(t, half + i) * sine;
      y(t, half + i) = x(t, half + i) * cosine + x(t, i) * sine;
    }
  }
  return y;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_ROTARY_REFERENCE_H_
