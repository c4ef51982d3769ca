// SPDX-License-Identifier: Apache-2.0

#include "ops/delta_solve.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <ostream>
#include <vector>

#include "gtest/gtest.h"

#include "ops/delta_solve_reference.h"
#include "tests/ops/backend_budget.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::Append;
using ::cubit::testing::ComplexStepGradient;
using ::cubit::testing::Documents;
using ::cubit::testing::ExpectWithinBudget;
using ::cubit::testing::HeadArray;
using ::cubit::testing::HeadSize;
using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::Named;
using ::cubit::testing::Poisoned;
using ::cubit::testing::Product;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::TestMask;
using ::cubit::testing::ToDouble;

using ComplexVector = std::vector<std::complex<double>>;
using reference::Matrix;

TEST(DeltaSolveReference, BackwardMatchesComplexStep) {
  // w, k, v [5, 3] and beta [5].
  const std::vector<double> z = ToDouble(RandomNormal(1, "z", {50}).values());
  const std::vector<double> d_x =
      ToDouble(RandomNormal(1, "d_x", {15}).values());
  reference::Mask mask;
  mask.segments = {0, 0, 0, 1, 1};
  const auto part = [](const auto& values, int64_t i) {
    using T = typename std::decay_t<decltype(values)>::value_type;
    return Matrix<T>(5, 3,
                     {values.begin() + i * 15, values.begin() + i * 15 + 15});
  };
  const auto solve = [&](const auto& s) {
    return reference::DeltaSolveForward(part(s, 0), part(s, 1), part(s, 2),
                                        {s.begin() + 45, s.end()}, 0.7, mask)
        .x;
  };
  const auto d = reference::DeltaSolveBackward(
      part(z, 0), part(z, 1), {z.begin() + 45, z.end()}, 0.7, mask, solve(z),
      Matrix<double>(5, 3, d_x));
  std::vector<double> gradient = d.d_w.values();
  Append(d.d_k.values(), &gradient);
  Append(d.d_v.values(), &gradient);
  Append(d.d_beta, &gradient);
  EXPECT_TRUE(IsClose(gradient,
                      ComplexStepGradient(z,
                                          [&](const ComplexVector& s) {
                                            return Product(d_x,
                                                           solve(s).values());
                                          }),
                      1e-10));
}

// One solve, there and back.
struct DeltaRun {
  DeltaRun(HeadSize s, double stddev, double beta_stddev, TestMask m)
      : size(s),
        mask(std::move(m)),
        w(s, "w", stddev),
        k(s, "k", stddev),
        v(s, "v"),
        d_x(s, "d_x"),
        beta(BetaSize(), "beta", beta_stddev) {}

  HeadSize BetaSize() const {
    return {size.batch, size.num_heads, size.seq_len, 1};
  }

  void Forward(int64_t first_row, HeadArray* x, HostTensor<float>* lse) const {
    Stream stream;
    DeltaSolveForward(w.view(), k.view(), v.view(), beta.view(), kScale,
                      mask.ForOp(), SolvePrecision::kBFloat16x3, first_row,
                      x->view(), lse->view(), stream);
  }

  Named<float> Op() const {
    HeadArray x(size), y(size), d_w(size), d_k(size), d_v(size);
    HeadArray d_beta(BetaSize());
    HostTensor<float> lse =
        Poisoned({size.batch, size.num_heads, size.seq_len});
    Forward(0, &x, &lse);
    Stream stream;
    DeltaSolveBackward(w.view(), k.view(), v.view(), beta.view(), kScale,
                       mask.ForOp(), SolvePrecision::kBFloat16x3, x.view(),
                       lse.view(), d_x.view(), y.view(), d_w.view(), d_k.view(),
                       d_v.view(), d_beta.view(), stream);
    EXPECT_TRUE(x.RestIsPoisoned());
    EXPECT_TRUE(d_w.RestIsPoisoned());
    EXPECT_TRUE(d_beta.RestIsPoisoned());
    return {{"x", x.Values()},     {"lse", FiniteLse(lse.values())},
            {"d_w", d_w.Values()}, {"d_k", d_k.Values()},
            {"d_v", d_v.Values()}, {"d_beta", d_beta.Values()}};
  }

  template <typename T>
  Named<T> Reference() const {
    Named<T> results;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const auto pair_mask = mask.ForReference(pair / size.num_heads);
      const std::vector<T> beta_values = beta.Head<T>(pair).values();
      const auto forward = reference::DeltaSolveForward(
          w.Head<T>(pair), k.Head<T>(pair), v.Head<T>(pair), beta_values,
          static_cast<double>(kScale), pair_mask);
      const auto d = reference::DeltaSolveBackward(
          w.Head<T>(pair), k.Head<T>(pair), beta_values,
          static_cast<double>(kScale), pair_mask, forward.x, d_x.Head<T>(pair));
      Append(forward.x.values(), &results["x"]);
      Append(FiniteLse(forward.lse), &results["lse"]);
      Append(d.d_w.values(), &results["d_w"]);
      Append(d.d_k.values(), &results["d_k"]);
      Append(d.d_v.values(), &results["d_v"]);
      Append(d.d_beta, &results["d_beta"]);
    }
    return results;
  }

  // -inf, for rows that see no key, as a number that cannot be mistaken.
  template <typename T>
  static std::vector<T> FiniteLse(std::vector<T> lse) {
    for (T& value : lse) {
      if (value == -std::numeric_limits<T>::infinity()) value = T(-1000);
    }
    return lse;
  }

  double ScoreRoundings() const {
    double largest = 0;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const auto scores =
          reference::ScaledProduct(static_cast<double>(kScale),
                                   w.Head<double>(pair), k.Head<double>(pair));
      for (double s : scores.values()) largest = std::max(largest, std::abs(s));
    }
    return testing::ScoreRoundings(largest, size);
  }

  static constexpr float kScale = 0.3f;
  HeadSize size;
  TestMask mask;
  HeadArray w, k, v, d_x, beta;
};

struct DeltaCase {
  const char* name;
  HeadSize size;
  double stddev = 1;
  double beta_stddev = 0.7;
  std::vector<int64_t> documents = {};
};

void PrintTo(const DeltaCase& c, std::ostream* out) { *out << c.name; }

class DeltaSolve : public ::testing::TestWithParam<DeltaCase> {};

TEST_P(DeltaSolve, MatchesReference) {
  const DeltaCase& c = GetParam();
  HostTensor<int32_t> segments;
  if (!c.documents.empty()) {
    segments = Documents(c.size.batch, c.size.seq_len, c.documents);
  }
  const DeltaRun run(c.size, c.stddev, c.beta_stddev, TestMask(true, segments));
  ExpectWithinBudget(run.Op(), run.Reference<float>(), run.Reference<double>(),
                     run.ScoreRoundings(), testing::ProductRoundings());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, DeltaSolve,
    ::testing::Values(DeltaCase{"OneRow", {1, 1, 1, 8}},
                      DeltaCase{"OddDim", {1, 2, 3, 5}},
                      DeltaCase{"BelowTile", {2, 1, 63, 16}},
                      DeltaCase{"OneTile", {1, 2, 64, 32}},
                      DeltaCase{"AboveTile", {1, 1, 65, 128}},
                      DeltaCase{"ThreeTiles", {1, 2, 129, 64}},
                      DeltaCase{"Sharp", {1, 1, 130, 16}, 3.0},
                      DeltaCase{"BetaZero", {1, 1, 80, 16}, 1.0, 0.0},
                      DeltaCase{"Documents",
                                {2, 2, 200, 16},
                                1.0,
                                0.7,
                                {1, 60, 64, 65, 130, 131}}));

TEST(DeltaSolve, TwoRunsGiveTheSameBits) {
  const DeltaRun run({3, 2, 130, 16}, 1, 0.5, {});
  EXPECT_EQ(run.Op(), run.Op());
}

TEST(DeltaSolve, FirstRowOfADocumentIsItsValue) {
  const DeltaRun run({1, 1, 70, 8}, 1, 0.5,
                     TestMask(true, Documents(1, 70, {30})));
  HeadArray x(run.size);
  HostTensor<float> lse = Poisoned({1, 1, 70});
  run.Forward(0, &x, &lse);
  for (const int64_t t : {0, 30}) {
    EXPECT_EQ(lse[t], -std::numeric_limits<float>::infinity());
    for (int64_t c = 0; c < 8; ++c) {
      EXPECT_EQ(x.view().row<float>(0, t, 0)[c],
                run.v.view().row<float>(0, t, 0)[c]);
    }
  }
}

TEST(DeltaSolve, ContinuesWhereItStopped) {
  const DeltaRun run({1, 2, 200, 16}, 1, 0.5, {});
  HeadArray whole(run.size);
  HostTensor<float> lse = Poisoned({1, 2, 200});
  run.Forward(0, &whole, &lse);
  for (const int64_t first_row : {1, 64, 100, 128, 199}) {
    HeadArray x(run.size);
    HostTensor<float> chunk_lse = Poisoned({1, 2, 200});
    for (int64_t n = 0; n < 2 * first_row; ++n) {
      const float* row = whole.view().row<float>(0, n / 2, n % 2);
      std::copy(row, row + 16, x.view().row<float>(0, n / 2, n % 2));
    }
    run.Forward(first_row, &x, &chunk_lse);
    if (first_row % 64 == 0) {
      EXPECT_EQ(x.Values(), whole.Values()) << first_row;
    } else {
      EXPECT_TRUE(IsClose(ToDouble(x.Values()), ToDouble(whole.Values()),
                          1e-6 * testing::ProductRoundings()))
          << first_row;
    }
    EXPECT_TRUE(std::isnan(chunk_lse[0]));
  }
}

TEST(DeltaSolve, KeysMayServeAsQueries) {
  // w = k: one view for both, as the mixer that shares the projection does.
  DeltaRun run({1, 1, 100, 8}, 1, 0.5, {});
  DeltaRun copied = run;
  copied.w = copied.k;
  HeadArray shared(run.size), apart(run.size);
  HostTensor<float> lse = Poisoned({1, 1, 100});
  Stream stream;
  DeltaSolveForward(run.k.view(), run.k.view(), run.v.view(), run.beta.view(),
                    DeltaRun::kScale, {}, SolvePrecision::kBFloat16x3, 0,
                    shared.view(), lse.view(), stream);
  copied.Forward(0, &apart, &lse);
  EXPECT_EQ(shared.Values(), apart.Values());
}

}  // namespace
}  // namespace cubit
