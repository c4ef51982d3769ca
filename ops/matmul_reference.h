// SPDX-License-Identifier: Apache-2.0
//
// The mathematics of matmul.h on row-major vectors, for T = float, double and
// std::complex<double>.

#ifndef CUBIT_OPS_MATMUL_REFERENCE_H_
#define CUBIT_OPS_MATMUL_REFERENCE_H_

#include <cstdint>
#include <vector>

namespace cubit {
namespace reference {

// y = x W^T + bias + residual; x [N, in], weight [out, in], bias [out] or
// empty, residual [N, out] or empty.
template <typename T>
std::vector<T> LinearForward(const std::vector<T>& x,
                             const std::vector<T>& weight,
                             const std::vector<T>& bias,
                             const std::vector<T>& residual, int64_t in,
                             int64_t out) {
  const int64_t num_rows = static_cast<int64_t>(x.size()) / in;
  std::vector<T> y(num_rows * out);
  for (int64_t n = 0; n < num_rows; ++n) {
    for (int64_t o = 0; o < out; ++o) {
      T sum = bias.empty() ? T(0) : bias[o];
      if (!residual.empty()) sum += residual[n * out + o];
      for (int64_t i = 0; i < in; ++i)
        sum += x[n * in + i] * weight[o * in + i];
      y[n * out + o] = sum;
    }
  }
  return y;
}

// d_x = d_y W.
template <typename T>
std::vector<T> LinearBackwardInput(const std::vector<T>& d_y,
                                   const std::vector<T>& weight, int64_t in,
                                   int64_t out) {
  const int64_t num_rows = static_cast<int64_t>(d_y.size()) / out;
  std::vector<T> d_x(num_rows * in, T(0));
  for (int64_t n = 0; n < num_rows; ++n) {
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) {
        d_x[n * in + i] += d_y[n * out + o] * weight[o * in + i];
      }
    }
  }
  return d_x;
}

// Sums over the rows of x [N, columns].
template <typename T>
std::vector<T> ColumnSums(const std::vector<T>& x, int64_t columns) {
  std::vector<T> sums(columns, T(0));
  const int64_t count = static_cast<int64_t>(x.size());
  for (int64_t i = 0; i < count; ++i) sums[i % columns] += x[i];
  return sums;
}

template <typename T>
struct LinearWeightGradient {
  std::vector<T> d_weight;  // [out, in]
  std::vector<T> d_bias;    // [out]
};

// d_weight = d_y^T x; d_bias = column sums of d_y.
template <typename T>
LinearWeightGradient<T> LinearBackwardWeight(const std::vector<T>& d_y,
                                             const std::vector<T>& x,
                                             int64_t in, int64_t out) {
  const int64_t num_rows = static_cast<int64_t>(d_y.size()) / out;
  LinearWeightGradient<T> gradient;
  gradient.d_weight.assign(out * in, T(0));
  gradient.d_bias = ColumnSums(d_y, out);
  for (int64_t n = 0; n < num_rows; ++n) {
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) {
        gradient.d_weight[o * in + i] += d_y[n * out + o] * x[n * in + i];
      }
    }
  }
  return gradient;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_MATMUL_REFERENCE_H_
