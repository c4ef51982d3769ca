// SPDX-License-Identifier: Apache-2.0
//
// The mathematics of sum_parts.h on row-major vectors, for T = float, double
// and std::complex<double>.

#ifndef CUBIT_OPS_SUM_PARTS_REFERENCE_H_
#define CUBIT_OPS_SUM_PARTS_REFERENCE_H_

#include <cstddef>
#include <vector>

namespace cubit {
namespace reference {

// `bias` and `residual` may be empty: absent.
template <typename T>
std::vector<T> SumParts(const std::vector<T>& parts, const std::vector<T>& bias,
                        const std::vector<T>& residual, size_t num_parts) {
  const size_t count = parts.size() / num_parts;
  std::vector<T> y(count, T(0));
  for (size_t i = 0; i < count; ++i) {
    for (size_t p = 0; p < num_parts; ++p) y[i] += parts[p * count + i];
    if (!bias.empty()) y[i] += bias[i % bias.size()];
    if (!residual.empty()) y[i] += residual[i];
  }
  return y;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_SUM_PARTS_REFERENCE_H_
