// SPDX-License-Identifier: Apache-2.0
//
// Sums of the CPU ops: in double, in an order that depends on the number of
// terms alone.

#ifndef CUBIT_OPS_REDUCTION_H_
#define CUBIT_OPS_REDUCTION_H_

#include <cstdint>

namespace cubit {

// Sum of term(i), a float or double, for i in [0, n). Term i goes to lane i %
// 16, in the order of i; then lane j takes lane j + 8, + 4, + 2, + 1. Sixteen
// chains hide the latency of addition, and written out like this the compiler
// keeps the order that it could not choose for itself.
template <typename Term>
double FixedOrderSum(int64_t n, Term term) {
  constexpr int64_t kLanes = 16;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += static_cast<double>(term(i + lane));
    }
  }
  for (int64_t lane = 0; i + lane < n; ++lane) {
    lanes[lane] += static_cast<double>(term(i + lane));
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane)
      lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace cubit

#endif  // CUBIT_OPS_REDUCTION_H_
