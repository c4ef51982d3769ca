// SPDX-License-Identifier: Apache-2.0
//
// The mathematics of embedding.h on row-major vectors, for T = float, double
// and std::complex<double>.

#ifndef CUBIT_OPS_EMBEDDING_REFERENCE_H_
#define CUBIT_OPS_EMBEDDING_REFERENCE_H_

#include <cstdint>
#include <vector>

namespace cubit {
namespace reference {

// y[n] = weight[ids[n]]; weight [V, D].
template <typename T>
std::vector<T> EmbeddingForward(const std::vector<int32_t>& ids,
                                const std::vector<T>& weight, int64_t dim) {
  std::vector<T> y;
  for (const int32_t id : ids) {
    for (int64_t i = 0; i < dim; ++i) y.push_back(weight[id * dim + i]);
  }
  return y;
}

// The gradient of weight [vocab_size, D].
template <typename T>
std::vector<T> EmbeddingBackward(const std::vector<int32_t>& ids,
                                 const std::vector<T>& d_y, int64_t vocab_size,
                                 int64_t dim) {
  std::vector<T> d_weight(vocab_size * dim, T(0));
  for (size_t n = 0; n < ids.size(); ++n) {
    for (int64_t i = 0; i < dim; ++i) {
      d_weight[ids[n] * dim + i] += d_y[static_cast<int64_t>(n) * dim + i];
    }
  }
  return d_weight;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_EMBEDDING_REFERENCE_H_
