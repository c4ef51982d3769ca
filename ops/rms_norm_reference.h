// SPDX-License-Identifier: Apache-2.0
//
// The mathematics of rms_norm.h on row-major vectors, for T = float, double and
// std::complex<double>. D is the length of the weight.

#ifndef CUBIT_OPS_RMS_NORM_REFERENCE_H_
#define CUBIT_OPS_RMS_NORM_REFERENCE_H_

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace cubit {
namespace reference {

template <typename T>
struct RmsNormResult {
  std::vector<T> y;     // [N, D]
  std::vector<T> rstd;  // [N]
};

template <typename T>
RmsNormResult<T> RmsNormForward(const std::vector<T>& x,
                                const std::vector<T>& weight, double eps) {
  using std::sqrt;
  const int64_t dim = static_cast<int64_t>(weight.size());
  const int64_t num_rows = static_cast<int64_t>(x.size()) / dim;
  RmsNormResult<T> result;
  for (int64_t n = 0; n < num_rows; ++n) {
    const T* row = x.data() + n * dim;
    T squares = T(0);
    for (int64_t i = 0; i < dim; ++i) squares += row[i] * row[i];
    const T rstd = T(1) / sqrt(squares / T(static_cast<double>(dim)) + T(eps));
    for (int64_t i = 0; i < dim; ++i) {
      result.y.push_back(row[i] * rstd * weight[i]);
    }
    result.rstd.push_back(rstd);
  }
  return result;
}

template <typename T>
struct RmsNormGradient {
  std::vector<T> d_x;       // [N, D]
  std::vector<T> d_weight;  // [D]
};

// With h = x rstd and g = d_y weight: d_x = rstd (g - h mean(g h)).
template <typename T>
RmsNormGradient<T> RmsNormBackward(const std::vector<T>& d_y,
                                   const std::vector<T>& x,
                                   const std::vector<T>& weight,
                                   const std::vector<T>& rstd) {
  const int64_t dim = static_cast<int64_t>(weight.size());
  const int64_t num_rows = static_cast<int64_t>(x.size()) / dim;
  RmsNormGradient<T> gradient;
  gradient.d_weight.assign(dim, T(0));
  for (int64_t n = 0; n < num_rows; ++n) {
    const T* d_y_row = d_y.data() + n * dim;
    const T* x_row = x.data() + n * dim;
    T product = T(0);
    for (int64_t i = 0; i < dim; ++i) {
      const T h = x_row[i] * rstd[n];
      product += d_y_row[i] * weight[i] * h;
      gradient.d_weight[i] += d_y_row[i] * h;
    }
    const T mean = product / T(static_cast<double>(dim));
    for (int64_t i = 0; i < dim; ++i) {
      const T h = x_row[i] * rstd[n];
      gradient.d_x.push_back(rstd[n] * (d_y_row[i] * weight[i] - h * mean));
    }
  }
  return gradient;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_RMS_NORM_REFERENCE_H_
