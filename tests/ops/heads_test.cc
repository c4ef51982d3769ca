// SPDX-License-Identifier: Apache-2.0

#include "ops/heads.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

#include "tests/ops/backend_budget.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::HeadArray;
using ::cubit::testing::HeadSize;
using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::Sum;

// Rows of odd length, rows that vectors fit, single tokens.
const HeadSize kSizes[] = {{2, 3, 17, 5}, {1, 4, 33, 64}, {2, 2, 1, 16}};

TEST(CopyHeads, CopiesTheHeadsAndNothingElse) {
  for (const HeadSize& size : kSizes) {
    const HeadArray x(size, "x");
    HeadArray y(size);
    Stream stream;
    CopyHeads(x.view(), y.view(), stream);
    EXPECT_EQ(y.Values(), x.Values());
    EXPECT_TRUE(y.RestIsPoisoned());
  }
}

TEST(CopyHeads, TurnsTokensOfScalarsIntoHeadsOfThem) {
  const HostTensor<float> columns = RandomNormal(1, "x", {2, 5, 3});
  HostTensor<float> scalars({2, 3, 5});
  Stream stream;
  CopyHeads(HeadsOf(columns.view(), 0, 3, 1), ScalarsOf(scalars.view()),
            stream);
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t t = 0; t < 5; ++t) {
      for (int64_t h = 0; h < 3; ++h) {
        EXPECT_EQ(scalars[(b * 3 + h) * 5 + t], columns[(b * 5 + t) * 3 + h]);
      }
    }
  }
}

TEST(AddHeads, AddsToWhatIsThere) {
  for (const HeadSize& size : kSizes) {
    const HeadArray x(size, "x");
    HeadArray y(size, "y");
    const std::vector<float> before = y.Values();
    Stream stream;
    AddHeads(x.view(), y.view(), stream);
    EXPECT_EQ(y.Values(), Sum(before, x.Values()));
    EXPECT_TRUE(y.RestIsPoisoned());
  }
}

TEST(AddHeadSums, AddsTheSumsOverTokens) {
  for (const HeadSize& size : kSizes) {
    const HeadArray x(size, "x");
    HostTensor<float> sums({size.num_heads * size.head_dim}, 2.0f);
    Stream stream;
    AddHeadSums(x.view(), Tensor(), stream);
    AddHeadSums(x.view(), sums.view(), stream);
    EXPECT_TRUE(
        IsClose(testing::ToDouble(sums.values()), x.SumsOverTokens(2.0), 1e-6));
  }
}

TEST(AddHeadSums, SumsHeadsThatAreNotSideBySide) {
  const HostTensor<float> scalars = RandomNormal(1, "x", {2, 3, 35});
  HostTensor<float> sums({3});
  Stream stream;
  AddHeadSums(ScalarsOf(scalars.view()), sums.view(), stream);
  for (int64_t h = 0; h < 3; ++h) {
    double want = 0;
    for (int64_t n = 0; n < 2 * 35; ++n) {
      want += static_cast<double>(scalars[(n / 35 * 3 + h) * 35 + n % 35]);
    }
    EXPECT_NEAR(sums[h], want, 1e-5);
  }
}

TEST(SigmoidHeads, MatchesTheFormulaAndItsDerivative) {
  for (const HeadSize& size : kSizes) {
    HeadArray x(size, "x", 3.0), d(size, "d");
    std::vector<double> want, gradient;
    const std::vector<float> x_values = x.Values(), d_values = d.Values();
    for (size_t i = 0; i < x_values.size(); ++i) {
      const double y = 1 / (1 + std::exp(-static_cast<double>(x_values[i])));
      want.push_back(y);
      gradient.push_back(static_cast<double>(d_values[i]) * y * (1 - y));
    }
    Stream stream;
    SigmoidHeads(x.view(), x.view(), stream);
    EXPECT_TRUE(IsClose(testing::ToDouble(x.Values()), want, 2e-7));
    SigmoidHeadsBackward(d.view(), x.view(), d.view(), stream);
    EXPECT_TRUE(IsClose(testing::ToDouble(d.Values()), gradient, 1e-6));
    EXPECT_TRUE(x.RestIsPoisoned());
    EXPECT_TRUE(d.RestIsPoisoned());
  }
}

}  // namespace
}  // namespace cubit
