// SPDX-License-Identifier: Apache-2.0

#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <ostream>
#include <vector>

#include "gtest/gtest.h"

#include "ops/attention_reference.h"
#include "runtime/device.h"
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

TEST(AttentionReference, BackwardMatchesComplexStep) {
  const std::vector<double> z = ToDouble(RandomNormal(1, "z", {45}).values());
  const std::vector<double> d_out =
      ToDouble(RandomNormal(1, "d_out", {15}).values());
  for (const bool causal : {true, false}) {
    reference::Mask mask;
    mask.causal = causal;
    mask.segments = {4, 4, 4, 5, 5};
    const auto part = [](const auto& values, int64_t i) {
      using T = typename std::decay_t<decltype(values)>::value_type;
      return Matrix<T>(5, 3,
                       {values.begin() + i * 15, values.begin() + i * 15 + 15});
    };
    const auto loss = [&](const ComplexVector& s) {
      return Product(d_out, reference::AttentionForward(part(s, 0), part(s, 1),
                                                        part(s, 2), 0.7, mask)
                                .out.values());
    };
    const auto d =
        reference::AttentionBackward(part(z, 0), part(z, 1), part(z, 2), 0.7,
                                     mask, Matrix<double>(5, 3, d_out));
    std::vector<double> gradient = d.d_q.values();
    Append(d.d_k.values(), &gradient);
    Append(d.d_v.values(), &gradient);
    EXPECT_TRUE(IsClose(gradient, ComplexStepGradient(z, loss), 1e-10));
  }
}

// One attention, there and back.
struct AttentionRun {
  AttentionRun(HeadSize s, double stddev, float scale_value, TestMask m)
      : size(s),
        scale(scale_value),
        mask(std::move(m)),
        q(s, "q", stddev),
        k(s, "k", stddev),
        v(s, "v"),
        d_out(s, "d_out") {}

  Named<float> Op() const {
    HeadArray out(size), d_q(size), d_k(size), d_v(size);
    HostTensor<float> lse =
        Poisoned({size.batch, size.num_heads, size.seq_len});
    HostTensor<float> delta = lse;
    Stream stream;
    AttentionForward(q.view(), k.view(), v.view(), scale, mask.ForOp(),
                     out.view(), lse.view(), stream);
    AttentionBackward(q.view(), k.view(), v.view(), out.view(), lse.view(),
                      d_out.view(), scale, mask.ForOp(), {}, d_q.view(),
                      d_k.view(), d_v.view(), delta.view(), stream);
    EXPECT_TRUE(out.RestIsPoisoned());
    EXPECT_TRUE(d_q.RestIsPoisoned());
    EXPECT_TRUE(d_k.RestIsPoisoned());
    EXPECT_TRUE(d_v.RestIsPoisoned());
    return {{"out", out.Values()},
            {"lse", lse.values()},
            {"d_q", d_q.Values()},
            {"d_k", d_k.Values()},
            {"d_v", d_v.Values()}};
  }

  template <typename T>
  Named<T> Reference() const {
    Named<T> results;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const auto pair_mask = mask.ForReference(pair / size.num_heads);
      const auto forward = reference::AttentionForward(
          q.Head<T>(pair), k.Head<T>(pair), v.Head<T>(pair),
          static_cast<double>(scale), pair_mask);
      const auto d = reference::AttentionBackward(
          q.Head<T>(pair), k.Head<T>(pair), v.Head<T>(pair),
          static_cast<double>(scale), pair_mask, d_out.Head<T>(pair));
      Append(forward.out.values(), &results["out"]);
      Append(forward.lse, &results["lse"]);
      Append(d.d_q.values(), &results["d_q"]);
      Append(d.d_k.values(), &results["d_k"]);
      Append(d.d_v.values(), &results["d_v"]);
    }
    return results;
  }

  double ScoreRoundings() const {
    double largest = 0;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const auto scores =
          reference::ScaledProduct(static_cast<double>(scale),
                                   q.Head<double>(pair), k.Head<double>(pair));
      for (double s : scores.values()) largest = std::max(largest, std::abs(s));
    }
    return testing::ScoreRoundings(largest, size);
  }

  HeadSize size;
  float scale;
  TestMask mask;
  HeadArray q, k, v, d_out;
};

struct AttentionCase {
  const char* name;
  HeadSize size;
  double stddev = 1;
  bool causal = true;
  std::vector<int64_t> documents = {};
};

void PrintTo(const AttentionCase& c, std::ostream* out) { *out << c.name; }

class Attention : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(Attention, MatchesReference) {
  const AttentionCase& c = GetParam();
  HostTensor<int32_t> segments;
  if (!c.documents.empty()) {
    segments = Documents(c.size.batch, c.size.seq_len, c.documents);
  }
  const float scale = 1 / std::sqrt(static_cast<float>(c.size.head_dim));
  const AttentionRun run(c.size, c.stddev, scale, TestMask(c.causal, segments));
  ExpectWithinBudget(run.Op(), run.Reference<float>(), run.Reference<double>(),
                     run.ScoreRoundings());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Attention,
    ::testing::Values(
        AttentionCase{"OddDim", {1, 2, 3, 5}},
        AttentionCase{"BelowTile", {2, 1, 63, 16}},
        AttentionCase{"OneTile", {1, 2, 64, 32}},
        AttentionCase{"AboveTile", {1, 1, 65, 128}},
        AttentionCase{"ThreeTiles", {1, 2, 129, 64}},
        AttentionCase{"Sharp", {1, 1, 130, 16}, 3.0},
        AttentionCase{"NotCausal", {2, 2, 130, 16}, 1.0, false},
        AttentionCase{
            "Documents", {2, 2, 200, 16}, 1.0, true, {1, 60, 64, 130, 131}},
        AttentionCase{
            "NotCausalDocuments", {2, 1, 150, 8}, 1.0, false, {20, 64, 100}}));

// Every element within `tolerance` of itself.
void ExpectEachWithin(double tolerance, const std::vector<float>& got,
                      const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double value = static_cast<double>(want[i]);
    EXPECT_NEAR(got[i], value, tolerance * std::abs(value)) << i;
  }
}

TEST(Attention, OneRowPassesItsValueThrough) {
  const AttentionRun run({1, 2, 1, 8}, 1, 0.35f, {});
  const Named<float> results = run.Op();
  // A GPU multiplies the weight 1, off by the rounding of its exponent, as two
  // tf32 parts with two parts of the value: 2 epsilons each, 3 for adding the
  // three products, 1 for dividing by the sum.
  const double tolerance =
      DeviceKind() == "cpu" ? 0 : 0x1p-23 * (8 + run.ScoreRoundings());
  ExpectEachWithin(tolerance, results.at("out"), run.v.Values());
  ExpectEachWithin(tolerance, results.at("d_v"), run.d_out.Values());
  // A softmax over one key is constant. dP - delta, which is 0, is what
  // rounding leaves of two sums of 8 products of normal values.
  for (const char* name : {"d_q", "d_k"}) {
    for (float value : results.at(name)) EXPECT_NEAR(value, 0, 2e-6) << name;
  }
}

TEST(Attention, TwoRunsGiveTheSameBits) {
  const AttentionRun run({3, 2, 130, 16}, 1, 0.25f, {});
  EXPECT_EQ(run.Op(), run.Op());
}

TEST(Attention, QueriesAreTheLastOfTheKeys) {
  const AttentionRun run({1, 2, 150, 8}, 1, 0.35f,
                         TestMask(true, Documents(1, 150, {40, 100})));
  HeadArray whole(run.size);
  HostTensor<float> lse = Poisoned({1, 2, 150});
  Stream stream;
  AttentionForward(run.q.view(), run.k.view(), run.v.view(), run.scale,
                   run.mask.ForOp(), whole.view(), lse.view(), stream);
  for (const int64_t count : {1, 40, 64, 100}) {
    HeadArray last({1, 2, count, 8});
    HostTensor<float> last_lse = Poisoned({1, 2, count});
    AttentionForward(SliceSequence(run.q.view(), 150 - count, count),
                     run.k.view(), run.v.view(), run.scale, run.mask.ForOp(),
                     last.view(), last_lse.view(), stream);
    for (int64_t h = 0; h < 2; ++h) {
      const auto want = whole.Head<double>(h).values();
      EXPECT_TRUE(IsClose(last.Head<double>(h).values(),
                          {want.end() - count * 8, want.end()}, 1e-6));
      EXPECT_NEAR(last_lse[h * count], lse[h * 150 + 150 - count], 1e-5);
    }
  }
}

TEST(Attention, GradientsAccumulateWhereAsked) {
  const AttentionRun run({1, 2, 70, 8}, 1, 0.35f, {});
  const Named<float> alone = run.Op();
  Stream stream;
  HeadArray out(run.size);
  HostTensor<float> lse = Poisoned({1, 2, 70}), delta = lse;
  AttentionForward(run.q.view(), run.k.view(), run.v.view(), run.scale, {},
                   out.view(), lse.view(), stream);
  for (int chosen = 0; chosen < 3; ++chosen) {
    AttentionAccumulate accumulate;
    accumulate.d_q = chosen == 0;
    accumulate.d_k = chosen == 1;
    accumulate.d_v = chosen == 2;
    HeadArray d[3] = {HeadArray(run.size, "old"), HeadArray(run.size, "old"),
                      HeadArray(run.size, "old")};
    const std::vector<float> old = d[0].Values();
    AttentionBackward(run.q.view(), run.k.view(), run.v.view(), out.view(),
                      lse.view(), run.d_out.view(), run.scale, {}, accumulate,
                      d[0].view(), d[1].view(), d[2].view(), delta.view(),
                      stream);
    const char* names[] = {"d_q", "d_k", "d_v"};
    for (int i = 0; i < 3; ++i) {
      std::vector<float> want = alone.at(names[i]);
      if (i == chosen) want = testing::Sum(want, old);
      EXPECT_EQ(d[i].Values(), want) << names[i] << ", asked for " << chosen;
    }
  }
}

TEST(Attention, HugeLogitsOverflowNothing) {
  const AttentionRun run({1, 1, 130, 16}, 60, 1.0f, {});
  for (const auto& [name, values] : run.Op()) {
    for (float value : values) ASSERT_TRUE(std::isfinite(value)) << name;
  }
}

TEST(Attention, NanIsNotHidden) {
  AttentionRun run({1, 1, 100, 8}, 1, 0.35f, {});
  run.q.view().row<float>(0, 80, 0)[2] = std::nanf("");
  const std::vector<float> out = run.Op().at("out");
  EXPECT_FALSE(std::isnan(out[79 * 8]));
  EXPECT_TRUE(std::isnan(out[80 * 8]));
  EXPECT_FALSE(std::isnan(out[81 * 8]));
}

}  // namespace
}  // namespace cubit
