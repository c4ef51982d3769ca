// SPDX-License-Identifier: Apache-2.0
//
// The mathematics of head_norm.h on contiguous [B, T, H, K] vectors, for T =
// float, double and std::complex<double>.

#ifndef CUBIT_OPS_HEAD_NORM_REFERENCE_H_
#define CUBIT_OPS_HEAD_NORM_REFERENCE_H_

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace cubit {
namespace reference {

template <typename T>
struct HeadNormResult {
  std::vector<T> y;         // [B, T, H, K]
  std::vector<T> inv_norm;  // [B, T, H]
};

// y = gain_h x / sqrt(|x|^2 + 1e-12); `gain` [H] may be empty (1).
template <typename T>
HeadNormResult<T> HeadNormForward(const std::vector<T>& x,
                                  const std::vector<T>& gain, int64_t num_heads,
                                  int64_t head_dim) {
  using std::sqrt;
  const int64_t num_rows = static_cast<int64_t>(x.size()) / head_dim;
  HeadNormResult<T> result;
  for (int64_t row = 0; row < num_rows; ++row) {
    const T* in = x.data() + row * head_dim;
    T squares = T(0);
    for (int64_t i = 0; i < head_dim; ++i) squares += in[i] * in[i];
    const T inv_norm = T(1) / sqrt(squares + T(1e-12));
    const T scale = gain.empty() ? T(1) : gain[row % num_heads];
    for (int64_t i = 0; i < head_dim; ++i) {
      result.y.push_back(scale * in[i] * inv_norm);
    }
    result.inv_norm.push_back(inv_norm);
  }
  return result;
}

template <typename T>
struct HeadNormGradient {
  std::vector<T> d_x;     // [B, T, H, K]
  std::vector<T> d_gain;  // [H]
};

// With u = x inv_norm: d_x = gain inv_norm (d_y - u <u, d_y>), d_gain = <u,
// d_y>.
template <typename T>
HeadNormGradient<T> HeadNormBackward(const std::vector<T>& d_y,
                                     const std::vector<T>& x,
                                     const std::vector<T>& gain,
                                     const std::vector<T>& inv_norm,
                                     int64_t num_heads, int64_t head_dim) {
  HeadNormGradient<T> gradient;
  gradient.d_gain.assign(num_heads, T(0));
  for (int64_t row = 0; row < static_cast<int64_t>(inv_norm.size()); ++row) {
    const T* in = x.data() + row * head_dim;
    const T* d_out = d_y.data() + row * head_dim;
    T product = T(0);
    for (int64_t i = 0; i < head_dim; ++i) {
      product += in[i] * inv_norm[row] * d_out[i];
    }
    const T scale = gain.empty() ? T(1) : gain[row % num_heads];
    for (int64_t i = 0; i < head_dim; ++i) {
      gradient.d_x.push_back(scale * inv_norm[row] *
                             (d_out[i] - in[i] * inv_norm[row] * product));
    }
    gradient.d_gain[row % num_heads] += product;
  }
  return gradient;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_HEAD_NORM_REFERENCE_H_
