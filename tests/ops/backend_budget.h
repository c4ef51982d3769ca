// SPDX-License-Identifier: Apache-2.0
//
// Is a back end as exact as its precision allows? The second rung of the tests
// of every op.

#ifndef CUBIT_TESTS_OPS_BACKEND_BUDGET_H_
#define CUBIT_TESTS_OPS_BACKEND_BUDGET_H_

#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "tests/testing/numerics.h"

namespace cubit {
namespace testing {

// The same values in another precision.
template <typename T>
std::vector<T> Widen(const std::vector<float>& values) {
  return std::vector<T>(values.begin(), values.end());
}

// Passes if `got` is at most twice as far from `exact`, the reference in
// double, as `plain`, the reference in float, plus one epsilon of the norm,
// which rounding the result to float may cost. `besides` is a relative error
// that it may have in addition.
inline ::testing::AssertionResult IsWithinBudget(
    const std::vector<float>& got, const std::vector<float>& plain,
    const std::vector<double>& exact, double besides = 0) {
  const double budget =
      2 * RelativeError(ToDouble(plain), exact) +
      static_cast<double>(std::numeric_limits<float>::epsilon());
  return IsClose(ToDouble(got), exact, budget + besides);
}

// a + b, element by element: what an op that accumulates must leave.
template <typename T>
std::vector<T> Sum(const std::vector<T>& a, const std::vector<T>& b) {
  CUBIT_CHECK_EQ(a.size(), b.size());
  std::vector<T> sum(a.size());
  for (size_t i = 0; i < a.size(); ++i) sum[i] = a[i] + b[i];
  return sum;
}

// <a, b> without conjugation: turns an output into the scalar whose gradient a
// complex step measures.
template <typename T>
T Product(const std::vector<double>& a, const std::vector<T>& b) {
  CUBIT_CHECK_EQ(a.size(), b.size());
  T sum = T(0);
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_OPS_BACKEND_BUDGET_H_
