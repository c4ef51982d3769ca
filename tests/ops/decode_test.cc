// SPDX-License-Identifier: Apache-2.0

#include "ops/decode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "ops/attention_reference.h"
#include "ops/delta_solve_reference.h"
#include "ops/krr_reference.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::Append;
using ::cubit::testing::ExpectWithinBudget;
using ::cubit::testing::HeadArray;
using ::cubit::testing::HeadSize;
using ::cubit::testing::HostTensor;
using ::cubit::testing::Named;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::ScoreRoundings;
using reference::Matrix;
using reference::Vector;

// Lengths around those at which the keys are cut into parts.
const HeadSize kSizes[] = {
    {1, 2, 1, 5}, {2, 3, 70, 16}, {1, 2, 300, 64}, {1, 1, 150, 128}};

constexpr float kScale = 0.3f;

// Row t of [B, H, T] scalars of pair b H + h.
template <typename T>
Vector<T> Row(const HostTensor<float>& scalars, int64_t pair, int64_t length) {
  const auto begin = scalars.values().begin() + pair * length;
  return Vector<T>(begin, begin + length);
}

double LargestScore(const Matrix<double>& scores) {
  double largest = 0;
  for (double s : scores.values()) largest = std::max(largest, std::abs(s));
  return largest;
}

TEST(AttentionDecode, GivesTheRowsOfCausalAttention) {
  for (const HeadSize& size : kSizes) {
    const HeadArray q(size, "q"), k(size, "k"), v(size, "v");
    HeadArray out(size);
    Stream stream;
    for (int64_t t = 0; t < size.seq_len; ++t) {
      AttentionDecode(SliceSequence(q.view(), t, 1), k.view(), v.view(), kScale,
                      t, SliceSequence(out.view(), t, 1), stream);
    }
    Named<float> plain;
    Named<double> exact;
    double largest = 0;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      Append(
          reference::AttentionForward(q.Head<float>(pair), k.Head<float>(pair),
                                      v.Head<float>(pair), kScale, {})
              .out.values(),
          &plain["out"]);
      Append(reference::AttentionForward(q.Head<double>(pair),
                                         k.Head<double>(pair),
                                         v.Head<double>(pair), kScale, {})
                 .out.values(),
             &exact["out"]);
      largest =
          std::max(largest, LargestScore(reference::ScaledProduct(
                                static_cast<double>(kScale),
                                q.Head<double>(pair), k.Head<double>(pair))));
    }
    ExpectWithinBudget({{"out", out.Values()}}, plain, exact,
                       ScoreRoundings(largest, size));
    EXPECT_TRUE(out.RestIsPoisoned());
  }
}

TEST(KrrDecode, GivesTheRowsOfTheSolve) {
  for (const HeadSize& size : kSizes) {
    const HeadArray r(size, "r", 1.5), v(size, "v");
    HeadArray x(size);
    const Shape scalars = {size.batch, size.num_heads, size.seq_len};
    HostTensor<float> column_scale(scalars);
    HostTensor<float> value_scale = RandomNormal(3, "s", scalars);
    const HostTensor<float> log_lambda(
        Shape{size.num_heads}, std::vector<float>(size.num_heads, -3.0f));
    reference::KrrParameters<float> parameters;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const Vector<float> column =
          reference::KrrFactorsForward(r.Head<float>(pair), {}, parameters)
              .column_scale;
      std::copy(column.begin(), column.end(),
                column_scale.values().begin() + pair * size.seq_len);
    }
    Stream stream;
    for (int64_t t = 0; t < size.seq_len; ++t) {
      KrrDecode(r.view(), ScalarsOf(ConstTensor(column_scale.view())),
                SliceSequence(v.view(), t, 1),
                SliceSequence(ScalarsOf(ConstTensor(value_scale.view())), t, 1),
                log_lambda.view(), t, x.view(), stream);
    }
    Named<float> plain;
    Named<double> exact;
    double largest = 0;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const reference::KrrFactors<float> factors = {
          Row<float>(column_scale, pair, size.seq_len),
          Row<float>(value_scale, pair, size.seq_len)};
      const reference::KrrFactors<double> wide = {
          Row<double>(column_scale, pair, size.seq_len),
          Row<double>(value_scale, pair, size.seq_len)};
      Append(reference::KrrSolveForward(r.Head<float>(pair),
                                        v.Head<float>(pair), factors, -3.0f, {})
                 .x.values(),
             &plain["x"]);
      Append(reference::KrrSolveForward(r.Head<double>(pair),
                                        v.Head<double>(pair), wide, -3.0, {})
                 .x.values(),
             &exact["x"]);
      largest =
          std::max(largest, LargestScore(reference::KrrScores(
                                r.Head<double>(pair), wide.column_scale)));
    }
    // The solve multiplies an error of the scores by what it multiplies the
    // values with; the budget is that of a system of this condition.
    ExpectWithinBudget({{"x", x.Values()}}, plain, exact,
                       8 * ScoreRoundings(largest, size));
    EXPECT_TRUE(x.RestIsPoisoned());
  }
}

TEST(DeltaDecode, GivesTheRowsOfTheSystem) {
  for (const HeadSize& size : kSizes) {
    const HeadArray w(size, "w"), k(size, "k"), v(size, "v");
    HeadArray x(size);
    const Shape scalars = {size.batch, size.num_heads, size.seq_len};
    const HostTensor<float> beta = RandomNormal(3, "beta", scalars, 0.5);
    Stream stream;
    for (int64_t t = 0; t < size.seq_len; ++t) {
      DeltaDecode(SliceSequence(w.view(), t, 1), k.view(),
                  SliceSequence(v.view(), t, 1),
                  SliceSequence(ScalarsOf(beta.view()), t, 1), kScale, t,
                  x.view(), stream);
    }
    Named<float> plain;
    Named<double> exact;
    double largest = 0;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      Append(reference::DeltaSolveForward(
                 w.Head<float>(pair), k.Head<float>(pair), v.Head<float>(pair),
                 Row<float>(beta, pair, size.seq_len), kScale, {})
                 .x.values(),
             &plain["x"]);
      Append(
          reference::DeltaSolveForward(
              w.Head<double>(pair), k.Head<double>(pair), v.Head<double>(pair),
              Row<double>(beta, pair, size.seq_len), kScale, {})
              .x.values(),
          &exact["x"]);
      largest =
          std::max(largest, LargestScore(reference::ScaledProduct(
                                static_cast<double>(kScale),
                                w.Head<double>(pair), k.Head<double>(pair))));
    }
    ExpectWithinBudget({{"x", x.Values()}}, plain, exact,
                       ScoreRoundings(largest, size));
    EXPECT_TRUE(x.RestIsPoisoned());
  }
}

}  // namespace
}  // namespace cubit
