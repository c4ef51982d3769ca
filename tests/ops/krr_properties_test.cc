// SPDX-License-Identifier: Apache-2.0
//
// Properties of the KRR solve that need no reference.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "ops/krr.h"
#include "ops/rotary.h"
#include "tests/ops/head_array.h"
#include "tests/ops/krr_case.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::Documents;
using ::cubit::testing::HeadArray;
using ::cubit::testing::HeadSize;
using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::KrrCase;
using ::cubit::testing::Poisoned;
using ::cubit::testing::ProductRoundings;
using ::cubit::testing::TestMask;
using ::cubit::testing::ToDouble;

// Elements [begin, end) of the sequence, all heads.
std::vector<float> RowsOf(const HeadArray& x, int64_t begin, int64_t end) {
  std::vector<float> rows;
  const HeadSize& size = x.size();
  for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
    const auto head = x.Head<float>(pair);
    const auto first = head.values().begin();
    rows.insert(rows.end(), first + begin * size.head_dim,
                first + end * size.head_dim);
  }
  return rows;
}

KrrCase Plain(HeadSize size) { return KrrCase(size, 0.5, 0, 1, -23, {}); }

TEST(KrrSolve, TwoRunsGiveTheSameBits) {
  const KrrCase krr = Plain({3, 2, 130, 16});
  EXPECT_EQ(krr.RunOp(), krr.RunOp());
}

TEST(KrrSolve, LaterRowsDoNotReachEarlierOnes) {
  KrrCase krr = Plain({1, 2, 150, 8});
  HeadArray before(krr.size), after(krr.size);
  HostTensor<float> lse = Poisoned(krr.column_scale.shape());
  krr.Forward(0, &before, &lse);
  for (int64_t t : {70, 149}) {
    krr.r.view().row<float>(0, t, 1)[0] += 3;
    krr.v.view().row<float>(0, t, 1)[2] -= 3;
  }
  krr.Forward(0, &after, &lse);
  EXPECT_EQ(RowsOf(before, 0, 70), RowsOf(after, 0, 70));
  EXPECT_NE(RowsOf(before, 70, 150), RowsOf(after, 70, 150));
}

TEST(KrrSolve, ContinuesAtATileBitForBit) {
  const KrrCase krr = Plain({2, 2, 200, 16});
  HeadArray whole(krr.size), chunked(krr.size);
  HostTensor<float> whole_lse = Poisoned(krr.column_scale.shape());
  HostTensor<float> chunked_lse = whole_lse;
  krr.Forward(0, &whole, &whole_lse);
  // The rows before a chunk come from the solve of all rows; those from it on
  // must be written again.
  for (int64_t first_row : {64, 128, 192}) {
    HeadArray x(krr.size);
    HostTensor<float> lse = Poisoned(krr.column_scale.shape());
    for (int64_t pair = 0; pair < krr.size.num_pairs(); ++pair) {
      for (int64_t t = 0; t < first_row; ++t) {
        const float* row = whole.view().row<float>(pair / 2, t, pair % 2);
        std::copy(row, row + 16, x.view().row<float>(pair / 2, t, pair % 2));
      }
    }
    krr.Forward(first_row, &x, &lse);
    EXPECT_EQ(x.Values(), whole.Values()) << first_row;
    EXPECT_TRUE(std::isnan(lse[0])) << "rows before first_row are not written";
    EXPECT_EQ(lse[199], whole_lse[199]);
  }
}

TEST(KrrSolve, DecodesOneRowAtATimeToRounding) {
  const KrrCase krr = Plain({1, 1, 135, 8});
  HeadArray whole(krr.size), decoded(krr.size);
  HostTensor<float> lse = Poisoned(krr.column_scale.shape());
  krr.Forward(0, &whole, &lse);
  Stream stream;
  for (int64_t t = 0; t < krr.size.seq_len; ++t) {
    // Only the first t + 1 rows exist yet.
    const ConstTensor columns = krr.column_scale.view();
    HostTensor<float> step_lse = Poisoned({1, 1, t + 1});
    const ConstTensor column_scale(columns.raw(), columns.dtype(),
                                   {1, 1, t + 1});
    const ConstTensor value_scale(krr.value_scale.view().raw(), columns.dtype(),
                                  {1, 1, t + 1});
    KrrSolveForward(
        SliceSequence(krr.r.view(), 0, t + 1),
        SliceSequence(krr.v.view(), 0, t + 1), column_scale, value_scale,
        krr.log_lambda.view(), {}, SolvePrecision::kBFloat16x3, t,
        SliceSequence(decoded.view(), 0, t + 1), step_lse.view(), stream);
    EXPECT_NEAR(step_lse[t], lse[t], 1e-5 * ProductRoundings());
  }
  EXPECT_TRUE(IsClose(ToDouble(decoded.Values()), ToDouble(whole.Values()),
                      1e-5 * ProductRoundings()));
}

TEST(KrrSolve, DocumentsAreSeparateSolves) {
  const HeadSize size = {1, 2, 180, 8};
  const std::vector<int64_t> bounds = {0, 33, 64, 150, 180};
  const KrrCase packed(
      size, 0.5, 0, 1, -5,
      TestMask(true, Documents(1, 180, {bounds.begin() + 1, bounds.end()})));
  HeadArray x(size);
  HostTensor<float> lse = Poisoned(packed.column_scale.shape());
  packed.Forward(0, &x, &lse);
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    const int64_t begin = bounds[i];
    const int64_t count = bounds[i + 1] - begin;
    HeadArray alone({1, 2, count, 8});
    HostTensor<float> columns({1, 2, count}), values({1, 2, count});
    HostTensor<float> alone_lse = Poisoned({1, 2, count});
    for (int64_t n = 0; n < 2 * count; ++n) {
      columns[n] = packed.column_scale[n / count * 180 + begin + n % count];
      values[n] = packed.value_scale[n / count * 180 + begin + n % count];
    }
    Stream stream;
    KrrSolveForward(SliceSequence(packed.r.view(), begin, count),
                    SliceSequence(packed.v.view(), begin, count),
                    columns.view(), values.view(), packed.log_lambda.view(), {},
                    SolvePrecision::kBFloat16x3, 0, alone.view(),
                    alone_lse.view(), stream);
    EXPECT_TRUE(IsClose(ToDouble(RowsOf(x, begin, begin + count)),
                        ToDouble(alone.Values()), 1e-5 * ProductRoundings()))
        << "document " << i;
  }
}

TEST(KrrSolve, BackwardOfZeroIsZeroAndOfTwiceIsTwice) {
  KrrCase krr = Plain({1, 2, 100, 8});
  const auto once = krr.RunOp();
  for (const float factor : {0.0f, 2.0f}) {
    KrrCase scaled = krr;
    for (int64_t n = 0; n < 2 * 100; ++n) {
      float* row = scaled.d_x.view().row<float>(0, n / 2, n % 2);
      for (int64_t c = 0; c < 8; ++c) row[c] *= factor;
    }
    // Products with a power of two are exact, so the bits agree.
    const auto result = scaled.RunOp();
    for (const char* name :
         {"d_r", "d_v", "d_column_scale", "d_value_scale", "d_log_lambda"}) {
      std::vector<float> want = once.at(name);
      for (float& value : want) value *= factor;
      EXPECT_EQ(result.at(name), want) << name << " times " << factor;
    }
  }
}

TEST(KrrSolve, ScratchMayBeTheGradientItself) {
  const KrrCase krr = Plain({2, 1, 100, 8});
  const auto apart = krr.RunOp();
  HeadArray x(krr.size), d_r(krr.size), d_v(krr.size), d_x = krr.d_x;
  HostTensor<float> lse = Poisoned(krr.column_scale.shape());
  HostTensor<float> d_columns = lse, d_values = lse;
  HostTensor<float> d_log_lambda({1}, 5.0f);
  krr.Forward(0, &x, &lse);
  Stream stream;
  KrrSolveBackward(krr.r.view(), krr.v.view(), krr.column_scale.view(),
                   krr.value_scale.view(), krr.log_lambda.view(), {},
                   SolvePrecision::kBFloat16x3, {}, x.view(), lse.view(),
                   d_x.view(), /*y=*/d_x.view(), d_r.view(), d_v.view(),
                   d_columns.view(), d_values.view(), d_log_lambda.view(),
                   /*health=*/Tensor(), /*d_r_sums=*/Tensor(),
                   /*d_v_sums=*/Tensor(), stream);
  EXPECT_EQ(d_r.Values(), apart.at("d_r"));
  EXPECT_EQ(d_v.Values(), apart.at("d_v"));
  // Accumulated, not written.
  EXPECT_FLOAT_EQ(d_log_lambda[0], 5.0f + apart.at("d_log_lambda")[0]);
}

// `sums` began as ones.
void ExpectSumsOf(const HeadArray& rows, const HostTensor<float>& sums) {
  EXPECT_TRUE(IsClose(ToDouble(sums.values()), rows.SumsOverTokens(1.0), 1e-6));
}

TEST(KrrSolve, BackwardAddsTheSumsOfItsGradients) {
  constexpr int64_t kLength = 130;
  // A head dim of kernels, and one whose rotation is a pass of its own.
  for (const int64_t head_dim : {32, 24}) {
    const KrrCase krr({2, 3, kLength, head_dim}, 0.5, 0, 1, -4,
                      TestMask(true, Documents(2, kLength, {30, 100})));
    HostTensor<float> table({kLength, head_dim});
    Stream stream;
    RotaryTable(10000, table.view(), stream);
    stream.Synchronize();
    HeadArray x(krr.size);
    HostTensor<float> lse = Poisoned(krr.column_scale.shape());
    krr.Forward(0, &x, &lse);
    for (const bool turns : {false, true}) {
      KrrBefore before;
      before.normalised = true;
      if (turns) before.rotary_table = table.view();
      const KrrCase::Gradients d = krr.Backward(before, x, lse);
      ExpectSumsOf(d.d_r, d.d_r_sums);
      ExpectSumsOf(d.d_v, d.d_v_sums);
    }
  }
}

TEST(KrrSolve, LargeNormsOverflowNothing) {
  // Scores of many thousands, of either sign.
  for (const float scale : {1.0f, 50.0f}) {
    const KrrCase krr({1, 1, 100, 16}, 200.0, 0, scale, -23, {});
    for (const auto& [name, values] : krr.RunOp()) {
      for (float value : values) ASSERT_TRUE(std::isfinite(value)) << name;
    }
  }
}

TEST(KrrSolve, NegativeScaleStaysFinite) {
  const KrrCase krr({1, 1, 100, 16}, 0.5, 0, -1.0f, 0, {});
  for (const auto& [name, values] : krr.RunOp()) {
    for (float value : values) ASSERT_TRUE(std::isfinite(value)) << name;
  }
}

TEST(KrrSolve, NanInARowReachesItAndNoEarlierOne) {
  KrrCase krr = Plain({1, 1, 130, 8});
  krr.r.view().row<float>(0, 70, 0)[3] = std::nanf("");
  HeadArray x(krr.size);
  HostTensor<float> lse = Poisoned(krr.column_scale.shape());
  krr.Forward(0, &x, &lse);
  for (float value : RowsOf(x, 0, 64)) EXPECT_FALSE(std::isnan(value));
  for (float value : RowsOf(x, 70, 71)) EXPECT_TRUE(std::isnan(value));
}

TEST(KrrHealth, MatchesItsDefinition) {
  KrrCase krr({2, 2, 90, 8}, 0.4, 0.2, 1, -4, {});
  krr.log_lambda[1] = -1;
  HeadArray x(krr.size);
  HostTensor<float> lse = Poisoned(krr.column_scale.shape());
  krr.Forward(0, &x, &lse);
  const HostTensor<float> result = krr.Health(x, lse);

  double diagonal = 1, largest_x = 0, largest_v = 0;
  for (int64_t pair = 0; pair < 4; ++pair) {
    const auto r = krr.r.Head<double>(pair);
    const auto v = krr.v.Head<double>(pair);
    const auto x_head = x.Head<double>(pair);
    for (int64_t t = 0; t < 90; ++t) {
      const int64_t i = pair * 90 + t;
      const double score = reference::RowDot(r, t, r, t) *
                           static_cast<double>(krr.column_scale[i]);
      diagonal =
          std::min(diagonal, std::exp(score - static_cast<double>(lse[i])));
      for (int64_t c = 0; c < 8; ++c) {
        largest_x = std::max(largest_x, std::abs(x_head(t, c)));
        largest_v = std::max(
            largest_v,
            std::abs(v(t, c) * static_cast<double>(krr.value_scale[i])));
      }
    }
  }
  EXPECT_NEAR(result[0], diagonal, 1e-6 * diagonal);
  EXPECT_NEAR(result[1], largest_x / largest_v, 1e-6 * result[1]);
  EXPECT_FLOAT_EQ(result[2], std::exp(-1.0f));
}

TEST(KrrHealth, NanIsNotHidden) {
  const KrrCase krr = Plain({2, 1, 10, 8});
  HeadArray x(krr.size);
  HostTensor<float> lse = Poisoned(krr.column_scale.shape());
  krr.Forward(0, &x, &lse);
  x.view().row<float>(0, 3, 0)[1] = std::nanf("");
  lse[4] = std::nanf("");
  for (const auto& result :
       {krr.Health(x, lse), krr.Backward({}, x, lse).health}) {
    EXPECT_TRUE(std::isnan(result[0]));
    EXPECT_TRUE(std::isnan(result[1]));
  }
}

TEST(KrrHealth, NanOfOneInputReachesTheNumbersThatItIsIn) {
  for (const char* input : {"x", "v", "r", "value_scale"}) {
    SCOPED_TRACE(input);
    KrrCase krr = Plain({1, 2, 130, 8});
    HeadArray x(krr.size);
    HostTensor<float> lse = Poisoned(krr.column_scale.shape());
    krr.Forward(0, &x, &lse);
    const float nan = std::nanf("");
    const std::string name = input;
    if (name == "x") x.view().row<float>(0, 129, 1)[7] = nan;
    if (name == "v") krr.v.view().row<float>(0, 64, 0)[0] = nan;
    if (name == "r") krr.r.view().row<float>(0, 70, 1)[3] = nan;
    if (name == "value_scale") krr.value_scale[63] = nan;
    const HostTensor<float> result = krr.Backward({}, x, lse).health;
    EXPECT_EQ(std::isnan(result[0]), name == "r");
    EXPECT_EQ(std::isnan(result[1]), name != "r");
    EXPECT_EQ(result[2], krr.Health(x, lse)[2]);
  }
}

// The smallest diagonal is of the products that the backward forms; magnitudes
// are the same numbers.
void ExpectBackwardsHealth(const KrrCase& krr) {
  HeadArray x(krr.size);
  HostTensor<float> lse = Poisoned(krr.column_scale.shape());
  krr.Forward(0, &x, &lse);
  const HostTensor<float> want = krr.Health(x, lse);
  const HostTensor<float> got = krr.Backward({}, x, lse).health;
  constexpr double kEpsilon = 1.2e-7;
  EXPECT_NEAR(got[0], want[0],
              krr.ScoreRoundings() * ProductRoundings() * kEpsilon * want[0]);
  EXPECT_EQ(got[1], want[1]);
  EXPECT_EQ(got[2], want[2]);
}

TEST(KrrHealth, OfTheBackwardIsTheSame) {
  for (const HeadSize size :
       {HeadSize{2, 2, 90, 8}, HeadSize{1, 3, 64, 32}, HeadSize{3, 2, 131, 64},
        HeadSize{1, 2, 200, 80}, HeadSize{2, 1, 129, 128}}) {
    SCOPED_TRACE(size.head_dim);
    KrrCase krr(size, 0.4, 0.2, 1, -4, {});
    krr.log_lambda[0] = -1;
    ExpectBackwardsHealth(krr);
    ExpectBackwardsHealth(KrrCase(
        size, 0.4, 0.2, 1, -23,
        TestMask(true, Documents(size.batch, size.seq_len, {1, 50, 63, 64}))));
  }
}

TEST(KrrHealth, OfTheBackwardIsThatOfALambdaAboveOne) {
  ExpectBackwardsHealth(KrrCase({2, 2, 90, 16}, 0.4, 0.2, 1, 2, {}));
}

// Far more blocks of rows than a GPU works on at a time: the largest numbers
// are of any of them.
TEST(KrrHealth, OfTheBackwardIsOfAllBlocks) {
  for (const int64_t pair : {0, 70, 127}) {
    KrrCase krr = Plain({4, 32, 320, 8});
    krr.value_scale[pair * 320 + 5 * (pair % 64)] = 30;
    ExpectBackwardsHealth(krr);
  }
}

}  // namespace
}  // namespace cubit
