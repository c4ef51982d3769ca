// SPDX-License-Identifier: Apache-2.0

#include "ops/triangular_block.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

#include "ops/reference_matrix.h"
#include "tests/ops/backend_budget.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::HostTensor;
using ::cubit::testing::IsWithinBudget;
using ::cubit::testing::Poisoned;
using ::cubit::testing::RandomNormal;
using reference::Matrix;

constexpr int64_t kStride = 64;

// Entries below the diagonal; the rest is NaN and must not be read.
HostTensor<float> StrictlyLower(int64_t rows) {
  const HostTensor<float> values = RandomNormal(1, "n", {rows, kStride}, 0.3);
  HostTensor<float> n = Poisoned({rows, kStride});
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < i; ++j)
      n[i * kStride + j] = values[i * kStride + j];
  }
  return n;
}

template <typename T>
Matrix<T> UnitLower(const HostTensor<float>& n) {
  const int64_t rows = n.shape()[0];
  Matrix<T> l(rows, rows);
  for (int64_t i = 0; i < rows; ++i) {
    l(i, i) = T(1);
    for (int64_t j = 0; j < i; ++j)
      l(i, j) = static_cast<T>(n[i * kStride + j]);
  }
  return l;
}

TEST(TriangularBlock, SolvesMatchReferenceForEverySize) {
  for (const int64_t rows : {1, 2, 15, 16, 17, 33, 48, 63, 64}) {
    for (const int64_t columns : {1, 5, 8, 16, 31, 32, 45, 64, 128}) {
      const HostTensor<float> n = StrictlyLower(rows);
      const HostTensor<float> b = RandomNormal(2, "b", {rows, columns});
      const auto rhs = [&](auto zero) {
        using T = decltype(zero);
        return Matrix<T>(rows, columns, {b.values().begin(), b.values().end()});
      };
      HostTensor<float> x = b;
      SolveUnitLower(n.values().data(), kStride, rows, columns,
                     x.values().data());
      EXPECT_TRUE(IsWithinBudget(
          x.values(),
          reference::SolveLower(UnitLower<float>(n), rhs(0.0f)).values(),
          reference::SolveLower(UnitLower<double>(n), rhs(0.0)).values()))
          << rows << " x " << columns;
      HostTensor<float> y = b;
      SolveUnitLowerTransposed(n.values().data(), kStride, rows, columns,
                               y.values().data());
      EXPECT_TRUE(IsWithinBudget(
          y.values(),
          reference::SolveLowerTransposed(UnitLower<float>(n), rhs(0.0f))
              .values(),
          reference::SolveLowerTransposed(UnitLower<double>(n), rhs(0.0))
              .values()))
          << rows << " x " << columns << " transposed";
    }
  }
}

}  // namespace
}  // namespace cubit
