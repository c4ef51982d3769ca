// SPDX-License-Identifier: Apache-2.0

#include "ops/krr.h"

#include <cmath>
#include <complex>
#include <ostream>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "ops/krr_reference.h"
#include "ops/rotary.h"
#include "tests/ops/backend_budget.h"
#include "tests/ops/head_array.h"
#include "tests/ops/krr_case.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::ComplexStepGradient;
using ::cubit::testing::Documents;
using ::cubit::testing::ExpectWithinBudget;
using ::cubit::testing::HeadArray;
using ::cubit::testing::HeadSize;
using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::IsWithinBudget;
using ::cubit::testing::KrrCase;
using ::cubit::testing::Poisoned;
using ::cubit::testing::Product;
using ::cubit::testing::ProductRoundings;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::TestMask;
using ::cubit::testing::ToDouble;

using Complex = std::complex<double>;
using ComplexVector = std::vector<Complex>;
using reference::Matrix;

// ---- The references against complex steps. ----

struct ReferenceCase {
  bool causal;
  std::vector<int32_t> segments;
  double scale;
  double log_lambda;
};

class KrrReference : public ::testing::TestWithParam<ReferenceCase> {};

// All inputs of a small solve as one vector: r, v, column_scale, value_scale,
// log_lambda.
struct Packed {
  static constexpr int64_t kRows = 5;
  static constexpr int64_t kDim = 3;

  template <typename T>
  static auto Forward(const std::vector<T>& z, const reference::Mask& mask) {
    return reference::KrrSolveForward(R(z), V(z), Factors(z), z.back(), mask);
  }
  template <typename T>
  static Matrix<T> R(const std::vector<T>& z) {
    return Matrix<T>(kRows, kDim, {z.begin(), z.begin() + 15});
  }
  template <typename T>
  static Matrix<T> V(const std::vector<T>& z) {
    return Matrix<T>(kRows, kDim, {z.begin() + 15, z.begin() + 30});
  }
  template <typename T>
  static reference::KrrFactors<T> Factors(const std::vector<T>& z) {
    return {{z.begin() + 30, z.begin() + 35}, {z.begin() + 35, z.begin() + 40}};
  }
};

TEST_P(KrrReference, SolveBackwardMatchesComplexStep) {
  const ReferenceCase& c = GetParam();
  std::vector<double> z = ToDouble(RandomNormal(3, "z", {41}).values());
  for (size_t i = 30; i < 40; ++i) z[i] = c.scale * (1 + 0.1 * z[i]);
  z.back() = c.log_lambda;
  const std::vector<double> d_x =
      ToDouble(RandomNormal(3, "d_x", {15}).values());
  reference::Mask mask;
  mask.causal = c.causal;
  mask.segments = c.segments;

  const auto x = Packed::Forward(z, mask).x;
  const auto d = reference::KrrSolveBackward(Packed::R(z), Packed::V(z),
                                             Packed::Factors(z), z.back(), mask,
                                             x, Matrix<double>(5, 3, d_x));
  std::vector<double> gradient = d.d_r.values();
  for (const auto& part : {d.d_v.values(), d.d_column_scale, d.d_value_scale}) {
    gradient.insert(gradient.end(), part.begin(), part.end());
  }
  gradient.push_back(d.d_log_lambda);
  EXPECT_TRUE(IsClose(
      gradient,
      ComplexStepGradient(z,
                          [&](const ComplexVector& step) {
                            return Product(
                                d_x, Packed::Forward(step, mask).x.values());
                          }),
      1e-10));
}

INSTANTIATE_TEST_SUITE_P(
    Forms, KrrReference,
    ::testing::Values(ReferenceCase{true, {}, 1, -3},
                      ReferenceCase{true, {0, 0, 1, 1, 1}, 1, -23},
                      ReferenceCase{true, {}, -0.3, 0},
                      ReferenceCase{false, {}, 1, -2},
                      ReferenceCase{false, {0, 0, 0, 2, 2}, 1, -2}));

TEST(KrrReference, FactorsBackwardMatchesComplexStep) {
  // r [4, 3], lrr_logits [4], scale, lower, upper_scale.
  const std::vector<double> z = ToDouble(RandomNormal(4, "z", {19}).values());
  const std::vector<double> d = ToDouble(RandomNormal(4, "d", {8}).values());
  const auto forward = [](const auto& values) {
    using T = typename std::decay_t<decltype(values)>::value_type;
    return reference::KrrFactorsForward(
        Matrix<T>(4, 3, {values.begin(), values.begin() + 12}),
        {values.begin() + 12, values.begin() + 16},
        reference::KrrParameters<T>{values[16], values[17], values[18], T(0)});
  };
  const auto loss = [&](const ComplexVector& step) {
    const auto factors = forward(step);
    return Product({d.begin(), d.begin() + 4}, factors.column_scale) +
           Product({d.begin() + 4, d.end()}, factors.value_scale);
  };
  const auto gradients = reference::KrrFactorsBackward(
      Matrix<double>(4, 3, {z.begin(), z.begin() + 12}),
      {z.begin() + 12, z.begin() + 16},
      reference::KrrParameters<double>{z[16], z[17], z[18], 0},
      {d.begin(), d.begin() + 4}, {d.begin() + 4, d.end()});
  std::vector<double> flat = gradients.d_r.values();
  flat.insert(flat.end(), gradients.d_lrr_logits.begin(),
              gradients.d_lrr_logits.end());
  flat.insert(flat.end(),
              {gradients.d_scale, gradients.d_lower, gradients.d_upper_scale});
  EXPECT_TRUE(IsClose(flat, ComplexStepGradient(z, loss), 1e-10));
}

// ---- The solve against the reference in double. ----

struct SolveCase {
  const char* name;
  HeadSize size;
  double r_stddev = 0.5;
  double common = 0;  // part of r that all rows share: a flat kernel
  float scale = 1;
  float log_lambda = -23;
  bool causal = true;
  std::vector<int64_t> documents = {};
};

void PrintTo(const SolveCase& c, std::ostream* out) { *out << c.name; }

KrrCase MakeCase(const SolveCase& c) {
  HostTensor<int32_t> segments;
  if (!c.documents.empty()) {
    segments = Documents(c.size.batch, c.size.seq_len, c.documents);
  }
  return KrrCase(c.size, c.r_stddev, c.common, c.scale, c.log_lambda,
                 TestMask(c.causal, segments));
}

class KrrSolve : public ::testing::TestWithParam<SolveCase> {};

TEST_P(KrrSolve, MatchesReference) {
  const SolveCase& c = GetParam();
  if (!c.causal && ProductRoundings() > 1) {
    GTEST_SKIP() << "skipped: the dense system is solved on the CPU alone";
  }
  const KrrCase krr = MakeCase(c);
  const auto exact = krr.RunReference<double>();
  ExpectWithinBudget(krr.RunOp(), krr.RunReference<float>(), exact,
                     krr.ScoreRoundings(), ProductRoundings());
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, KrrSolve,
    ::testing::Values(SolveCase{"OneRow", {1, 1, 1, 8}},
                      SolveCase{"TwoRowsOddDim", {1, 1, 2, 5}},
                      SolveCase{"BelowTile", {2, 2, 63, 16}},
                      SolveCase{"OneTile", {1, 2, 64, 32}},
                      SolveCase{"AboveTile", {2, 1, 65, 8}},
                      SolveCase{"TwoTilesAndOne", {1, 1, 129, 64}},
                      SolveCase{"Wide", {1, 1, 130, 128}, 0.3},
                      SolveCase{"Long", {1, 2, 200, 32}}));

INSTANTIATE_TEST_SUITE_P(
    Kernels, KrrSolve,
    ::testing::Values(
        SolveCase{"SharpKernel", {1, 1, 130, 16}, 4.0},
        SolveCase{"FlatKernel", {1, 1, 200, 32}, 0.05},
        SolveCase{"CorrelatedRows", {1, 1, 200, 32}, 0.35, 0.35},
        SolveCase{"LargeScale", {1, 1, 100, 16}, 0.5, 0, 20.0f},
        SolveCase{"ModerateLambda", {1, 1, 100, 16}, 0.5, 0, 1, -2.0f},
        SolveCase{"LargeLambda", {1, 1, 100, 16}, 0.5, 0, 1, 20.0f},
        SolveCase{"ScaleZero", {1, 2, 100, 16}, 0.5, 0, 0.0f, 1.0f},
        SolveCase{"NegativeScale", {1, 2, 130, 16}, 0.2, 0, -1.0f, 1.0f}));

INSTANTIATE_TEST_SUITE_P(
    Masks, KrrSolve,
    ::testing::Values(SolveCase{"Documents",
                                {2, 2, 200, 16},
                                0.5,
                                0,
                                1,
                                -23,
                                true,
                                {1, 60, 64, 130, 131}},
                      SolveCase{"ShortDocuments",
                                {1, 1, 66, 8},
                                0.5,
                                0,
                                1,
                                -23,
                                true,
                                {10, 20, 30, 40, 50, 64, 65}},
                      SolveCase{"DocumentsNegativeScale",
                                {1, 1, 130, 8},
                                0.3,
                                0,
                                -1.0f,
                                1.0f,
                                true,
                                {70}},
                      SolveCase{
                          "NotCausal", {2, 2, 40, 16}, 1.0, 0, 1, -3, false},
                      SolveCase{"NotCausalDocuments",
                                {2, 1, 70, 8},
                                1.0,
                                0,
                                1,
                                -3,
                                false,
                                {20, 50}}));

// ---- The backward through norm and rotation. ----

struct PassesBefore {
  bool normalised;
  bool rotated;
};

class KrrSolveBefore
    : public ::testing::TestWithParam<std::tuple<SolveCase, PassesBefore>> {};

TEST_P(KrrSolveBefore, EqualsThePassesApart) {
  const auto& [c, passes] = GetParam();
  if (!c.causal && ProductRoundings() > 1) {
    GTEST_SKIP() << "skipped: the dense system is solved on the CPU alone";
  }
  const KrrCase krr = MakeCase(c);
  Stream stream;
  HostTensor<float> table = Poisoned({c.size.seq_len + 3, c.size.head_dim});
  if (passes.rotated) RotaryTable(10000.0, table.view(), stream);
  HeadArray x(c.size);
  HostTensor<float> lse = Poisoned(krr.column_scale.shape());
  krr.Forward(0, &x, &lse);

  KrrCase::Gradients apart = krr.Backward({}, x, lse);
  const HostTensor<float> scale({c.size.num_heads}, c.scale);
  HostTensor<float> d_scale({c.size.num_heads}, 0.0f);
  if (passes.normalised) {
    KrrFactorsBackward(krr.r.view(), {}, scale.view(), {},
                       krr.column_scale.view(), apart.d_columns.view(),
                       apart.d_values.view(), apart.d_r.view(), {},
                       d_scale.view(), {}, {}, stream);
  }
  if (passes.rotated) {
    RotaryBackward(table.view(), 0, apart.d_r.view(), stream);
  }

  KrrBefore before;
  before.normalised = passes.normalised;
  if (passes.rotated) before.rotary_table = table.view();
  const KrrCase::Gradients fused = krr.Backward(before, x, lse);
  constexpr double kTolerance = 3e-6;
  EXPECT_TRUE(IsClose(ToDouble(fused.d_r.Values()),
                      ToDouble(apart.d_r.Values()), kTolerance));
  EXPECT_EQ(fused.d_v.Values(), apart.d_v.Values());
  EXPECT_EQ(fused.d_values.values(), apart.d_values.values());
  EXPECT_EQ(fused.d_log_lambda.values(), apart.d_log_lambda.values());
  if (!passes.normalised) {
    EXPECT_EQ(fused.d_columns.values(), apart.d_columns.values());
    return;
  }
  HostTensor<float> fused_d_scale({c.size.num_heads}, 0.0f);
  KrrScalarsBackward({}, {}, fused.d_columns.view(), fused.d_values.view(), {},
                     fused_d_scale.view(), {}, {}, stream);
  EXPECT_TRUE(IsClose(ToDouble(fused_d_scale.values()),
                      ToDouble(d_scale.values()), kTolerance));
}

// Head dims that kernels are made for, and those that they pad.
INSTANTIATE_TEST_SUITE_P(
    Sizes, KrrSolveBefore,
    ::testing::Combine(
        ::testing::Values(SolveCase{"OneRow", {1, 1, 1, 8}},
                          SolveCase{"BelowTile", {2, 2, 63, 16}},
                          SolveCase{"ThirtyTwo", {1, 3, 150, 32}},
                          SolveCase{"SixtyFour", {2, 1, 129, 64}},
                          SolveCase{"Eighty", {1, 2, 100, 80}},
                          SolveCase{"NinetySix", {1, 1, 70, 96}},
                          SolveCase{"Wide", {1, 2, 130, 128}, 0.3}),
        ::testing::Values(PassesBefore{true, true}, PassesBefore{true, false},
                          PassesBefore{false, true})));
INSTANTIATE_TEST_SUITE_P(
    Systems, KrrSolveBefore,
    ::testing::Combine(
        ::testing::Values(
            SolveCase{"OddDim", {1, 1, 2, 5}},
            SolveCase{"LargeScale", {1, 1, 100, 16}, 0.5, 0, 20.0f},
            SolveCase{"ScaleZero", {1, 2, 100, 16}, 0.5, 0, 0.0f, 1.0f}),
        ::testing::Values(PassesBefore{true, false})));
INSTANTIATE_TEST_SUITE_P(
    Masks, KrrSolveBefore,
    ::testing::Combine(
        ::testing::Values(
            SolveCase{"Documents",
                      {2, 2, 200, 64},
                      0.5,
                      0,
                      1,
                      -23,
                      true,
                      {1, 60, 64, 130, 131}},
            SolveCase{"NotCausal", {2, 2, 40, 16}, 1.0, 0, 1, -3, false}),
        ::testing::Values(PassesBefore{true, true})));

TEST(KrrSolveBeforeDeathTest, TableMustReachTheLastPosition) {
  const KrrCase krr({1, 1, 9, 32}, 0.5, 0, 1, -23, {});
  const HostTensor<float> table({8, 32});
  HeadArray x(krr.size), y(krr.size);
  HostTensor<float> lse = Poisoned(krr.column_scale.shape());
  krr.Forward(0, &x, &lse);
  KrrCase::Gradients d(krr.size);
  KrrBefore before;
  before.rotary_table = table.view();
  Stream stream;
  EXPECT_DEATH(
      KrrSolveBackward(krr.r.view(), krr.v.view(), krr.column_scale.view(),
                       krr.value_scale.view(), krr.log_lambda.view(), {},
                       SolvePrecision::kBFloat16x3, before, x.view(),
                       lse.view(), krr.d_x.view(), y.view(), d.d_r.view(),
                       d.d_v.view(), d.d_columns.view(), d.d_values.view(),
                       d.d_log_lambda.view(), /*health=*/Tensor(),
                       /*d_r_sums=*/Tensor(), /*d_v_sums=*/Tensor(), stream),
      "positions \\[0, 9\\) of a table of 8");
}

// ---- The factors. ----

struct FactorsRun {
  explicit FactorsRun(HeadSize s)
      : size(s),
        r(s, "r"),
        lrr({s.batch, s.num_heads, s.seq_len, 1}, "lrr"),
        scale(RandomNormal(5, "scale", {s.num_heads})),
        lower(RandomNormal(5, "lower", {s.num_heads})),
        upper(RandomNormal(5, "upper", {s.num_heads})),
        d_columns(
            RandomNormal(5, "d_columns", {s.batch, s.num_heads, s.seq_len})),
        d_values(
            RandomNormal(5, "d_values", {s.batch, s.num_heads, s.seq_len})),
        column_scale(Poisoned(d_columns.shape())),
        value_scale(column_scale) {}

  HeadSize size;
  HeadArray r, lrr;
  HostTensor<float> scale, lower, upper, d_columns, d_values;
  HostTensor<float> column_scale, value_scale;
};

template <typename T>
testing::Named<T> FactorsReference(const FactorsRun& run) {
  testing::Named<T> results;
  const int64_t num_rows = run.size.seq_len;
  for (const char* name : {"d_scale", "d_lower", "d_upper_scale"}) {
    results[name].resize(static_cast<size_t>(run.size.num_heads));
  }
  for (int64_t pair = 0; pair < run.size.num_pairs(); ++pair) {
    const int64_t h = pair % run.size.num_heads;
    const reference::KrrParameters<T> parameters = {
        T(run.scale[h]), T(run.lower[h]), T(run.upper[h]), T(0)};
    const auto part = [&](const HostTensor<float>& x) {
      const auto begin = x.values().begin() + pair * num_rows;
      return std::vector<T>(begin, begin + num_rows);
    };
    const Matrix<T> r = run.r.Head<T>(pair);
    const std::vector<T> lrr = run.lrr.Head<T>(pair).values();
    const auto forward = reference::KrrFactorsForward(r, lrr, parameters);
    testing::Append(forward.column_scale, &results["column_scale"]);
    testing::Append(forward.value_scale, &results["value_scale"]);
    const auto d = reference::KrrFactorsBackward(
        r, lrr, parameters, part(run.d_columns), part(run.d_values));
    testing::Append(d.d_r.values(), &results["d_r"]);
    testing::Append(d.d_lrr_logits, &results["d_lrr_logits"]);
    results["d_scale"][static_cast<size_t>(h)] += d.d_scale;
    results["d_lower"][static_cast<size_t>(h)] += d.d_lower;
    results["d_upper_scale"][static_cast<size_t>(h)] += d.d_upper_scale;
  }
  return results;
}

TEST(KrrFactors, MatchReferenceAndAccumulate) {
  FactorsRun run({2, 3, 17, 8});
  Stream stream;
  KrrFactorsForward(run.r.view(), run.lrr.view(), run.scale.view(),
                    run.lower.view(), run.upper.view(), run.column_scale.view(),
                    run.value_scale.view(), stream);
  HeadArray d_r(run.size, "old d_r");
  const std::vector<float> old_d_r = d_r.Values();
  HeadArray d_lrr({2, 3, 17, 1});
  HostTensor<float> d_scale({3}, 10.0f), d_lower({3}, 20.0f),
      d_upper({3}, 30.0f);
  KrrFactorsBackward(run.r.view(), run.lrr.view(), run.scale.view(),
                     run.upper.view(), run.column_scale.view(),
                     run.d_columns.view(), run.d_values.view(), d_r.view(),
                     d_lrr.view(), d_scale.view(), d_lower.view(),
                     d_upper.view(), stream);
  auto plain = FactorsReference<float>(run);
  auto exact = FactorsReference<double>(run);
  const auto add = [](auto* values, const auto& old) {
    for (size_t i = 0; i < values->size(); ++i) {
      (*values)[i] += static_cast<double>(old[i]);
    }
  };
  add(&exact["d_r"], old_d_r);
  add(&exact["d_scale"], std::vector<float>(3, 10));
  add(&exact["d_lower"], std::vector<float>(3, 20));
  add(&exact["d_upper_scale"], std::vector<float>(3, 30));
  plain["d_r"] = testing::Sum(plain["d_r"], old_d_r);
  plain["d_scale"] = testing::Sum(plain["d_scale"], {10, 10, 10});
  plain["d_lower"] = testing::Sum(plain["d_lower"], {20, 20, 20});
  plain["d_upper_scale"] = testing::Sum(plain["d_upper_scale"], {30, 30, 30});
  const testing::Named<float> got = {
      {"column_scale", run.column_scale.values()},
      {"value_scale", run.value_scale.values()},
      {"d_r", d_r.Values()},
      {"d_lrr_logits", d_lrr.Values()},
      {"d_scale", d_scale.values()},
      {"d_lower", d_lower.values()},
      {"d_upper_scale", d_upper.values()}};
  for (const auto& [name, want] : exact) {
    EXPECT_TRUE(IsWithinBudget(got.at(name), plain.at(name), want)) << name;
  }
  EXPECT_TRUE(d_r.RestIsPoisoned());
  EXPECT_TRUE(d_lrr.RestIsPoisoned());
}

TEST(KrrFactors, WithoutLrrValuesKeepTheirScale) {
  FactorsRun run({1, 2, 9, 4});
  Stream stream;
  KrrFactorsForward(run.r.view(), {}, run.scale.view(), {}, {},
                    run.column_scale.view(), run.value_scale.view(), stream);
  EXPECT_EQ(run.value_scale.values(), std::vector<float>(18, 1.0f));
  HeadArray d_r(run.size, "old d_r");
  HostTensor<float> d_scale({2}, 0.0f);
  KrrFactorsBackward(run.r.view(), {}, run.scale.view(), {},
                     run.column_scale.view(), run.d_columns.view(),
                     run.d_values.view(), d_r.view(), {}, d_scale.view(), {},
                     {}, stream);
  const auto exact = FactorsReference<double>(run);
  EXPECT_TRUE(IsClose(ToDouble(d_scale.values()), exact.at("d_scale"), 1e-6));
}

// The tokens' shares of d_scale that a run of the factors has.
HostTensor<float> SharesOf(const FactorsRun& run) {
  HostTensor<float> shares = run.d_columns;
  for (int64_t i = 0; i < run.size.num_pairs() * run.size.seq_len; ++i) {
    const auto r = run.r.Head<double>(i / run.size.seq_len);
    const int64_t t = i % run.size.seq_len;
    shares[i] = static_cast<float>(static_cast<double>(shares[i]) /
                                   std::sqrt(reference::RowDot(r, t, r, t)));
  }
  return shares;
}

// Sequences of less and of more than one thread block of a GPU.
TEST(KrrScalars, EqualTheFactorsAndAccumulate) {
  for (const int64_t seq_len : {1, 17, 2100}) {
    const FactorsRun run({2, 3, seq_len, 2});
    const HostTensor<float> shares = SharesOf(run);
    const auto exact = FactorsReference<double>(run);
    const auto plain = FactorsReference<float>(run);
    HeadArray d_lrr({2, 3, seq_len, 1});
    HostTensor<float> d_scale({3}, 0.0f), d_lower({3}, 0.0f),
        d_upper({3}, 0.0f);
    Stream stream;
    const auto run_op = [&] {
      KrrScalarsBackward(run.lrr.view(), run.upper.view(), shares.view(),
                         run.d_values.view(), d_lrr.view(), d_scale.view(),
                         d_lower.view(), d_upper.view(), stream);
    };
    run_op();
    EXPECT_TRUE(IsClose(ToDouble(d_scale.values()), exact.at("d_scale"), 1e-6));
    EXPECT_TRUE(IsClose(ToDouble(d_lower.values()), exact.at("d_lower"), 1e-6));
    EXPECT_TRUE(
        IsClose(ToDouble(d_upper.values()), exact.at("d_upper_scale"), 1e-6));
    EXPECT_TRUE(IsWithinBudget(d_lrr.Values(), plain.at("d_lrr_logits"),
                               exact.at("d_lrr_logits")));
    EXPECT_TRUE(d_lrr.RestIsPoisoned());
    const std::vector<float> once = d_scale.values();
    run_op();
    EXPECT_EQ(d_scale.values(), testing::Sum(once, once));
  }
}

TEST(KrrScalars, WithoutLrrOnlyTheScaleHasAGradient) {
  const FactorsRun run({1, 2, 9, 4});
  HostTensor<float> d_scale({2}, 0.0f);
  Stream stream;
  KrrScalarsBackward({}, {}, SharesOf(run).view(), run.d_values.view(), {},
                     d_scale.view(), {}, {}, stream);
  EXPECT_TRUE(IsClose(ToDouble(d_scale.values()),
                      FactorsReference<double>(run).at("d_scale"), 1e-6));
}

// Rows that whole vectors of their halves make up, and others.
TEST(KrrRotaryFactors, EqualTheRotationAndTheFactors) {
  for (const HeadSize& size :
       {HeadSize{2, 3, 17, 8}, HeadSize{1, 5, 30, 64}, HeadSize{2, 2, 9, 80},
        HeadSize{1, 2, 33, 128}, HeadSize{1, 3, 5, 6}, HeadSize{3, 2, 1, 32}}) {
    FactorsRun apart(size), fused(size);
    HostTensor<float> table = Poisoned({size.seq_len + 9, size.head_dim});
    Stream stream;
    RotaryTable(10000.0, table.view(), stream);
    RotaryForward(table.view(), 9, apart.r.view(), stream);
    KrrFactorsForward(apart.r.view(), apart.lrr.view(), apart.scale.view(),
                      apart.lower.view(), apart.upper.view(),
                      apart.column_scale.view(), apart.value_scale.view(),
                      stream);
    KrrRotaryFactorsForward(table.view(), 9, fused.r.view(), fused.lrr.view(),
                            fused.scale.view(), fused.lower.view(),
                            fused.upper.view(), fused.column_scale.view(),
                            fused.value_scale.view(), stream);
    EXPECT_TRUE(
        IsClose(ToDouble(fused.r.Values()), ToDouble(apart.r.Values()), 1e-7));
    EXPECT_TRUE(fused.r.RestIsPoisoned());
    EXPECT_TRUE(IsClose(ToDouble(fused.column_scale.values()),
                        ToDouble(apart.column_scale.values()), 5e-7));
    EXPECT_EQ(fused.value_scale.values(), apart.value_scale.values());
  }
}

TEST(KrrRotaryFactors, WithoutATableNothingTurns) {
  FactorsRun apart({1, 2, 9, 4}), fused = apart;
  Stream stream;
  KrrFactorsForward(apart.r.view(), {}, apart.scale.view(), {}, {},
                    apart.column_scale.view(), apart.value_scale.view(),
                    stream);
  KrrRotaryFactorsForward({}, 0, fused.r.view(), {}, fused.scale.view(), {}, {},
                          fused.column_scale.view(), fused.value_scale.view(),
                          stream);
  EXPECT_EQ(fused.r.Values(), apart.r.Values());
  EXPECT_EQ(fused.column_scale.values(), apart.column_scale.values());
  EXPECT_EQ(fused.value_scale.values(), apart.value_scale.values());
}

TEST(KrrFactors, ZeroRowAndZeroScaleStayFinite) {
  const HeadSize size = {1, 1, 2, 4};
  HeadArray r(size, "r", 0.0);
  const HostTensor<float> scale({1}, 0.0f);
  const HostTensor<float> ones({1, 1, 2}, 1.0f);
  HostTensor<float> column_scale = Poisoned({1, 1, 2});
  HostTensor<float> value_scale = column_scale;
  Stream stream;
  KrrFactorsForward(r.view(), {}, scale.view(), {}, {}, column_scale.view(),
                    value_scale.view(), stream);
  EXPECT_EQ(column_scale.values(), std::vector<float>(2, 0.0f));
  HeadArray d_r(size, "d_r", 0.0);
  HostTensor<float> d_scale({1}, 0.0f);
  KrrFactorsBackward(r.view(), {}, scale.view(), {}, column_scale.view(),
                     ones.view(), ones.view(), d_r.view(), {}, d_scale.view(),
                     {}, {}, stream);
  EXPECT_EQ(d_r.Values(), std::vector<float>(8, 0.0f));
  // Two rows of norm sqrt(1e-12).
  EXPECT_FLOAT_EQ(d_scale[0], 2e6f);
}

}  // namespace
}  // namespace cubit
