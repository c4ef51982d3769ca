// SPDX-License-Identifier: Apache-2.0

#include "data/split_rule.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace cubit {
namespace {

int64_t CountValidation(const SplitRule& rule, int64_t begin, int64_t end) {
  int64_t count = 0;
  for (int64_t d = begin; d < end; ++d) count += rule.IsValidation(d) ? 1 : 0;
  return count;
}

TEST(SplitRule, TakesOneOfEveryRow) {
  for (const double fraction : {0.5, 0.1, 0.01, 0.003}) {
    const SplitRule rule(fraction);
    const int64_t period = rule.period();
    EXPECT_NEAR(static_cast<double>(period) * fraction, 1, 0.01);
    for (int64_t row = 0; row < 50; ++row) {
      EXPECT_EQ(CountValidation(rule, row * period, (row + 1) * period), 1);
    }
  }
}

TEST(SplitRule, TakesOneOfTwoDocumentsAndNeverTheFirst) {
  for (const double fraction : {0.5, 0.3, 0.01, 1e-9, 1e-300}) {
    const SplitRule rule(fraction);
    EXPECT_FALSE(rule.IsValidation(0)) << fraction;
    EXPECT_TRUE(rule.IsValidation(1)) << fraction;
  }
}

TEST(SplitRule, PlacesInRowsVary) {
  const SplitRule rule(0.1);
  int64_t count[10] = {};
  for (int64_t d = 10; d < 20010; ++d) {
    if (rule.IsValidation(d)) ++count[d % 10];
  }
  for (const int64_t c : count) EXPECT_NEAR(static_cast<double>(c), 200, 70);
}

TEST(SplitRule, ZeroTakesNone) {
  const SplitRule rule(0);
  EXPECT_EQ(rule.period(), 0);
  EXPECT_EQ(CountValidation(rule, 0, 1000), 0);
  EXPECT_EQ(rule.TrainTokensOfSingle(1000), 1000);
}

TEST(SplitRule, CutsTheEndOfASingleDocument) {
  const SplitRule rule(0.01);
  EXPECT_EQ(rule.TrainTokensOfSingle(1000), 990);
  EXPECT_EQ(rule.TrainTokensOfSingle(1050), 1040);
  EXPECT_EQ(rule.TrainTokensOfSingle(50), 49);
  EXPECT_EQ(rule.TrainTokensOfSingle(2), 1);
  EXPECT_EQ(rule.TrainTokensOfSingle(1), 1);
}

}  // namespace
}  // namespace cubit
