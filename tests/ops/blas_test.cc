// SPDX-License-Identifier: Apache-2.0

#include "ops/blas.h"

#include <limits>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::Poisoned;
using ::cubit::testing::RandomNormal;

class SgemmLayout : public ::testing::TestWithParam<std::tuple<bool, bool>> {};

TEST_P(SgemmLayout, MultipliesWithStridesAndScales) {
  const auto [trans_a, trans_b] = GetParam();
  const int64_t m = 7, n = 5, k = 19;
  const int64_t lda = (trans_a ? m : k) + 3;
  const int64_t ldb = (trans_b ? k : n) + 2;
  const int64_t ldc = n + 1;
  const HostTensor<float> a = RandomNormal(1, "a", {trans_a ? k : m, lda});
  const HostTensor<float> b = RandomNormal(1, "b", {trans_b ? n : k, ldb});
  HostTensor<float> c = RandomNormal(1, "c", {m, ldc});
  std::vector<double> want = testing::ToDouble(c.values());
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        const double left = trans_a ? a[l * lda + i] : a[i * lda + l];
        const double right = trans_b ? b[j * ldb + l] : b[l * ldb + j];
        sum += left * right;
      }
      double& element = want[static_cast<size_t>(i * ldc + j)];
      element = 2.0 * sum + 0.5 * element;
    }
  }
  Sgemm(trans_a, trans_b, m, n, k, 2.0f, a.values().data(), lda,
        b.values().data(), ldb, 0.5f, c.values().data(), ldc);
  EXPECT_TRUE(IsClose(testing::ToDouble(c.values()), want, 1e-6));
}

INSTANTIATE_TEST_SUITE_P(Transposes, SgemmLayout,
                         ::testing::Combine(::testing::Bool(),
                                            ::testing::Bool()));

TEST(Sgemm, DoesNotReadTheResultWhenBetaIsZero) {
  const HostTensor<float> a = RandomNormal(2, "a", {3, 4});
  const HostTensor<float> b = RandomNormal(2, "b", {4, 3});
  HostTensor<float> c = Poisoned({3, 3});
  Sgemm(false, false, 3, 3, 4, 1.0f, a.values().data(), 4, b.values().data(), 3,
        0.0f, c.values().data(), 3);
  for (const float value : c.values()) EXPECT_FALSE(std::isnan(value));
}

TEST(Sgemm, AcceptsEmptyMatrices) {
  std::vector<float> c = {1.0f, 2.0f};
  const float zero = 0;
  Sgemm(false, false, 1, 2, 0, 1.0f, &zero, 1, &zero, 2, 1.0f, c.data(), 2);
  EXPECT_EQ(c, (std::vector<float>{1, 2}));
  Sgemm(false, false, 1, 2, 0, 1.0f, &zero, 1, &zero, 2, 0.0f, c.data(), 2);
  EXPECT_EQ(c, (std::vector<float>{0, 0}));
  Sgemm(false, false, 0, 2, 1, 1.0f, &zero, 1, &zero, 2, 0.0f, c.data(), 2);
}

TEST(SgemmDeathTest, RefusesAStrideUnderTheRowLength) {
  const float a[6] = {};
  float c[4];
  EXPECT_DEATH(Sgemm(false, false, 2, 2, 3, 1.0f, a, 2, a, 2, 0.0f, c, 2),
               "lda");
}

}  // namespace
}  // namespace cubit
