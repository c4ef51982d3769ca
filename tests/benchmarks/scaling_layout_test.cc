// SPDX-License-Identifier: Apache-2.0

#include "tests/benchmarks/scaling_layout.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ParseLayout, ReadsSizesAndWords) {
  const auto layout = ParseLayout("dp2-tp4-cp8-ulysses-pp3-interleaved-m12");
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->dp, 2);
  EXPECT_EQ(layout->tp, 4);
  EXPECT_EQ(layout->cp, 8);
  EXPECT_EQ(layout->pp, 3);
  EXPECT_EQ(layout->num_micro_batches, 12);
  EXPECT_EQ(layout->world_size(), 192);
  EXPECT_THAT(layout->overrides,
              ElementsAre("parallel.cp_method=ulysses",
                          "parallel.pipeline_schedule=interleaved",
                          "parallel.tp_size=4", "parallel.pp_size=3",
                          "parallel.cp_size=8"));
}

TEST(ParseLayout, OneRank) {
  const auto layout = ParseLayout("1");
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->world_size(), 1);
  EXPECT_EQ(layout->num_micro_batches, 0);
}

TEST(ParseLayout, RefusesOtherWords) {
  for (const char* text : {"", "tp", "tp0", "xp2", "tp2-fast", "tp2-", "2"}) {
    const auto layout = ParseLayout(text);
    ASSERT_FALSE(layout.ok()) << text;
    EXPECT_THAT(std::string(layout.status().message()),
                HasSubstr("wanted dpN, tpN"));
  }
}

TEST(DefaultLayouts, FitTheRanks) {
  for (const int ranks : {1, 2, 4, 8, 16}) {
    int largest = 1;
    for (const std::string& text : DefaultLayouts(ranks)) {
      const auto layout = ParseLayout(text);
      ASSERT_TRUE(layout.ok()) << layout.status();
      EXPECT_LE(layout->world_size(), ranks) << text;
      largest = std::max(largest, layout->world_size());
    }
    EXPECT_EQ(largest, ranks);
  }
}

}  // namespace
}  // namespace cubit
