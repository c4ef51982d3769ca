// SPDX-License-Identifier: Apache-2.0

#ifndef CUBIT_RUNTIME_ROUNDING_H_
#define CUBIT_RUNTIME_ROUNDING_H_

#include <cstdint>

namespace cubit {

// n / d rounded up; n >= 0, d >= 1.
constexpr int64_t CeilDivide(int64_t n, int64_t d) { return (n + d - 1) / d; }

// The smallest multiple of `unit` (>= 1) that is at least n (>= 0).
constexpr int64_t RoundUp(int64_t n, int64_t unit) {
  return CeilDivide(n, unit) * unit;
}

}  // namespace cubit

#endif  // CUBIT_RUNTIME_ROUNDING_H_
