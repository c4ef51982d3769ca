// SPDX-License-Identifier: Apache-2.0
//
// The mathematics of layer_norm.h on row-major vectors, for T = float, double
// and std::complex<double>. D is the length of the weight.

#ifndef CUBIT_OPS_LAYER_NORM_REFERENCE_H_
#define CUBIT_OPS_LAYER_NORM_REFERENCE_H_

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace cubit {
namespace reference {

template <typename T>
struct LayerNormResult {
  std::vector<T> y;     // [N, D]
  std::vector<T> mean;  // [N]
  std::vector<T> rstd;  // [N]
};

// `bias` may be empty.
template <typename T>
LayerNormResult<T> LayerNormForward(const std::vector<T>& x,
                                    const std::vector<T>& weight,
                                    const std::vector<T>& bias, double eps) {
  using std::sqrt;
  const int64_t dim = static_cast<int64_t>(weight.size());
  const int64_t num_rows = static_cast<int64_t>(x.size()) / dim;
  const T count = T(static_cast<double>(dim));
  LayerNormResult<T> result;
  for (int64_t n = 0; n < num_rows; ++n) {
    const T* row = x.data() + n * dim;
    T sum = T(0);
    for (int64_t i = 0; i < dim; ++i) sum += row[i];
    const T mean = sum / count;
    T squares = T(0);
    for (int64_t i = 0; i < dim; ++i) {
      squares += (row[i] - mean) * (row[i] - mean);
    }
    const T rstd = T(1) / sqrt(squares / count + T(eps));
    for (int64_t i = 0; i < dim; ++i) {
      const T shift = bias.empty() ? T(0) : bias[i];
      result.y.push_back((row[i] - mean) * rstd * weight[i] + shift);
    }
    result.mean.push_back(mean);
    result.rstd.push_back(rstd);
  }
  return result;
}

template <typename T>
struct LayerNormGradient {
  std::vector<T> d_x;       // [N, D]
  std::vector<T> d_weight;  // [D]
  std::vector<T> d_bias;    // [D]
};

// With h = (x - mean) rstd and g = d_y weight:
//   d_x = rstd (g - mean(g) - h mean(g h)).
template <typename T>
LayerNormGradient<T> LayerNormBackward(const std::vector<T>& d_y,
                                       const std::vector<T>& x,
                                       const std::vector<T>& weight,
                                       const std::vector<T>& mean,
                                       const std::vector<T>& rstd) {
  const int64_t dim = static_cast<int64_t>(weight.size());
  const int64_t num_rows = static_cast<int64_t>(x.size()) / dim;
  const T count = T(static_cast<double>(dim));
  LayerNormGradient<T> gradient;
  gradient.d_weight.assign(dim, T(0));
  gradient.d_bias.assign(dim, T(0));
  for (int64_t n = 0; n < num_rows; ++n) {
    const T* d_y_row = d_y.data() + n * dim;
    const T* x_row = x.data() + n * dim;
    T sum = T(0);
    T product = T(0);
    for (int64_t i = 0; i < dim; ++i) {
      const T h = (x_row[i] - mean[n]) * rstd[n];
      sum += d_y_row[i] * weight[i];
      product += d_y_row[i] * weight[i] * h;
      gradient.d_weight[i] += d_y_row[i] * h;
      gradient.d_bias[i] += d_y_row[i];
    }
    for (int64_t i = 0; i < dim; ++i) {
      const T h = (x_row[i] - mean[n]) * rstd[n];
      gradient.d_x.push_back(rstd[n] * (d_y_row[i] * weight[i] - sum / count -
                                        h * product / count));
    }
  }
  return gradient;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_LAYER_NORM_REFERENCE_H_
