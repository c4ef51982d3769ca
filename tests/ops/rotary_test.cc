// SPDX-License-Identifier: Apache-2.0

#include "ops/rotary.h"

#include <cmath>
#include <complex>
#include <vector>

#include "gtest/gtest.h"

#include "ops/rotary_reference.h"
#include "tests/ops/backend_budget.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::Append;
using ::cubit::testing::ComplexStepGradient;
using ::cubit::testing::HeadArray;
using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::IsWithinBudget;
using ::cubit::testing::Poisoned;
using ::cubit::testing::Product;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::ToDouble;

using ComplexVector = std::vector<std::complex<double>>;
using reference::Matrix;

HostTensor<float> Table(int64_t num_rows, int64_t head_dim) {
  HostTensor<float> table = Poisoned({num_rows, head_dim});
  Stream stream;
  RotaryTable(10000.0, table.view(), stream);
  return table;
}

TEST(RotaryReference, BackwardMatchesComplexStep) {
  const std::vector<double> x = ToDouble(RandomNormal(1, "x", {18}).values());
  const std::vector<double> d_y = ToDouble(RandomNormal(1, "d", {18}).values());
  const auto loss = [&](const ComplexVector& z) {
    return Product(d_y,
                   reference::Rotary(Matrix<ComplexVector::value_type>(3, 6, z),
                                     100.0, 5, 1)
                       .values());
  };
  EXPECT_TRUE(IsClose(
      reference::Rotary(Matrix<double>(3, 6, d_y), 100.0, 5, -1).values(),
      ComplexStepGradient(x, loss), 1e-10));
}

TEST(RotaryTable, HoldsCosinesThenSines) {
  const HostTensor<float> table = Table(5, 4);
  for (int64_t t = 0; t < 5; ++t) {
    for (int64_t i = 0; i < 2; ++i) {
      const double angle = static_cast<double>(t) * (i == 0 ? 1.0 : 0.01);
      EXPECT_EQ(table[t * 4 + i], static_cast<float>(std::cos(angle)));
      EXPECT_EQ(table[t * 4 + 2 + i], static_cast<float>(std::sin(angle)));
    }
  }
}

TEST(Rotary, MatchesReferenceFromAnyPosition) {
  const HostTensor<float> table = Table(300, 10);
  for (const int64_t first : {0, 7, 230}) {
    HeadArray x({2, 3, 70, 10}, "x");
    std::vector<float> plain;
    std::vector<double> exact;
    for (int64_t pair = 0; pair < 6; ++pair) {
      Append(reference::Rotary(x.Head<float>(pair), 10000.0, first, 1).values(),
             &plain);
      Append(
          reference::Rotary(x.Head<double>(pair), 10000.0, first, 1).values(),
          &exact);
    }
    Stream stream;
    RotaryForward(table.view(), first, x.view(), stream);
    EXPECT_TRUE(IsWithinBudget(x.Values(), plain, exact));
    EXPECT_TRUE(x.RestIsPoisoned());
  }
}

TEST(Rotary, BackwardTurnsBack) {
  const HostTensor<float> table = Table(64, 16);
  HeadArray x({1, 2, 50, 16}, "x");
  const std::vector<double> before = ToDouble(x.Values());
  Stream stream;
  RotaryForward(table.view(), 14, x.view(), stream);
  EXPECT_FALSE(IsClose(ToDouble(x.Values()), before, 0.1));
  RotaryBackward(table.view(), 14, x.view(), stream);
  EXPECT_TRUE(IsClose(ToDouble(x.Values()), before, 3e-7));
}

TEST(Rotary, ViewsOfOneCallTurnAsEachAlone) {
  const HostTensor<float> table = Table(64, 16);
  Stream stream;
  // More heads than one thread takes, and not a multiple of them.
  const testing::HeadSize size = {2, 5, 20, 16};
  HeadArray q(size, "q"), k(size, "k"), r(size, "r");
  HeadArray q_alone = q, k_alone = k, r_alone = r;
  RotaryForward(table.view(), 3, {q.view(), k.view(), r.view()}, stream);
  for (HeadArray* x : {&q_alone, &k_alone, &r_alone}) {
    RotaryForward(table.view(), 3, x->view(), stream);
  }
  EXPECT_EQ(q.Values(), q_alone.Values());
  EXPECT_EQ(k.Values(), k_alone.Values());
  EXPECT_EQ(r.Values(), r_alone.Values());
  RotaryBackward(table.view(), 3, {q.view(), k.view()}, stream);
  for (HeadArray* x : {&q_alone, &k_alone}) {
    RotaryBackward(table.view(), 3, x->view(), stream);
    EXPECT_TRUE(x->RestIsPoisoned());
  }
  EXPECT_EQ(q.Values(), q_alone.Values());
  EXPECT_EQ(k.Values(), k_alone.Values());
  EXPECT_EQ(r.Values(), r_alone.Values());
}

// `sums` began as ones.
void ExpectSumsOf(const HeadArray& rows, const HostTensor<float>& sums) {
  EXPECT_TRUE(IsClose(ToDouble(sums.values()), rows.SumsOverTokens(1.0), 1e-6));
}

TEST(Rotary, BackwardAddsTheSumsOfItsGradients) {
  Stream stream;
  // Tokens of several parts; fewer than one part, and more threads a token than
  // a block has; rows whose halves are no whole vectors.
  for (const testing::HeadSize& size :
       {testing::HeadSize{2, 5, 130, 16}, testing::HeadSize{1, 9, 20, 128},
        testing::HeadSize{2, 3, 65, 6}}) {
    const HostTensor<float> table = Table(140, size.head_dim);
    HeadArray q(size, "q"), k(size, "k");
    HeadArray q_alone = q, k_alone = k;
    const HostTensor<float> ones({size.num_heads * size.head_dim}, 1.0f);
    HostTensor<float> q_sums = ones, k_sums = ones;
    RotaryBackward(table.view(), 3, {q_alone.view(), k_alone.view()}, stream);
    RotaryBackward(table.view(), 3, {q.view(), k.view()},
                   {q_sums.view(), k_sums.view()}, stream);
    EXPECT_EQ(q.Values(), q_alone.Values());
    EXPECT_EQ(k.Values(), k_alone.Values());
    ExpectSumsOf(q, q_sums);
    ExpectSumsOf(k, k_sums);
    k_sums = ones;
    RotaryBackward(table.view(), 3, {q.view(), k.view()},
                   {Tensor(), k_sums.view()}, stream);
    ExpectSumsOf(k, k_sums);
    EXPECT_TRUE(q.RestIsPoisoned());
    EXPECT_TRUE(k.RestIsPoisoned());
  }
}

TEST(RotaryDeathTest, ViewsOfOneCallHaveEqualExtents) {
  const HostTensor<float> table = Table(10, 8);
  HeadArray q({1, 2, 4, 8}, "q"), k({1, 1, 4, 8}, "k");
  Stream stream;
  EXPECT_DEATH(RotaryForward(table.view(), 0, {q.view(), k.view()}, stream),
               "\\[1, 4, 1, 8\\] and \\[1, 4, 2, 8\\]");
}

TEST(Rotary, ProductsDependOnTheDistanceAlone) {
  const HostTensor<float> table = Table(500, 8);
  Stream stream;
  const auto product = [&](int64_t q_position, int64_t k_position) {
    HeadArray q({1, 1, 1, 8}, "q"), k({1, 1, 1, 8}, "k");
    RotaryForward(table.view(), q_position, q.view(), stream);
    RotaryForward(table.view(), k_position, k.view(), stream);
    return reference::RowDot(q.Head<double>(0), 0, k.Head<double>(0), 0);
  };
  EXPECT_NEAR(product(40, 10), product(430, 400), 1e-5);
  EXPECT_GT(std::abs(product(40, 10) - product(40, 20)), 1e-2);
}

TEST(RotaryDeathTest, TableMustReachTheLastPosition) {
  const HostTensor<float> table = Table(10, 8);
  HeadArray x({1, 1, 4, 8}, "x");
  Stream stream;
  EXPECT_DEATH(RotaryForward(table.view(), 7, x.view(), stream),
               "positions \\[7, 11\\) of a table of 10");
}

}  // namespace
}  // namespace cubit
