// SPDX-License-Identifier: Apache-2.0

#include "launch/lr_schedule.h"

#include <cmath>
#include <cstdint>

#include "gtest/gtest.h"

namespace cubit {
namespace {

using Kind = RunConfig::ScheduleKind;

RunConfig::Schedule Schedule(Kind::Word kind, int64_t warmup, int64_t total) {
  RunConfig::Schedule schedule;
  schedule.set_kind(kind);
  schedule.set_warmup_steps(warmup);
  schedule.set_total_steps(total);
  schedule.set_min_learning_rate_ratio(0.1);
  return schedule;
}

TEST(LearningRate, WarmsUpInALine) {
  for (Kind::Word kind : {Kind::constant, Kind::cosine, Kind::wsd}) {
    const auto schedule = Schedule(kind, 10, 100);
    EXPECT_DOUBLE_EQ(LearningRate(schedule, 2.0, 1), 0.2);
    EXPECT_DOUBLE_EQ(LearningRate(schedule, 2.0, 5), 1.0);
    EXPECT_EQ(LearningRate(schedule, 2.0, 10), 2.0);
  }
}

TEST(LearningRate, ConstantStays) {
  const auto schedule = Schedule(Kind::constant, 0, 100);
  for (int64_t step : {1, 50, 100, 1000}) {
    EXPECT_EQ(LearningRate(schedule, 3.0, step), 3.0);
  }
}

TEST(LearningRate, CosineFallsToItsLeast) {
  const auto schedule = Schedule(Kind::cosine, 10, 110);
  EXPECT_NEAR(LearningRate(schedule, 1.0, 35), 0.1 + 0.9 * (1 + M_SQRT1_2) / 2,
              1e-12);
  EXPECT_NEAR(LearningRate(schedule, 1.0, 60), 0.55, 1e-12);
  EXPECT_GT(LearningRate(schedule, 1.0, 109), 0.1);
  EXPECT_EQ(LearningRate(schedule, 1.0, 110), 0.1);
  EXPECT_EQ(LearningRate(schedule, 1.0, 100000), 0.1);
  for (int64_t step = 10; step < 110; ++step) {
    EXPECT_GT(LearningRate(schedule, 1.0, step),
              LearningRate(schedule, 1.0, step + 1));
  }
}

TEST(LearningRate, WsdHoldsAndThenFallsInALine) {
  auto schedule = Schedule(Kind::wsd, 10, 100);
  schedule.set_decay_steps(40);
  EXPECT_EQ(LearningRate(schedule, 1.0, 11), 1.0);
  EXPECT_EQ(LearningRate(schedule, 1.0, 60), 1.0);
  EXPECT_DOUBLE_EQ(LearningRate(schedule, 1.0, 61), 1.0 - 0.9 / 40);
  EXPECT_DOUBLE_EQ(LearningRate(schedule, 1.0, 80), 0.55);
  EXPECT_EQ(LearningRate(schedule, 1.0, 100), 0.1);
  EXPECT_EQ(LearningRate(schedule, 1.0, 101), 0.1);
}

TEST(LearningRate, WsdDecaysOverAFifthByDefault) {
  const auto schedule = Schedule(Kind::wsd, 0, 100);
  EXPECT_EQ(LearningRate(schedule, 1.0, 80), 1.0);
  EXPECT_LT(LearningRate(schedule, 1.0, 81), 1.0);
}

TEST(LearningRate, BordersDivideByNothing) {
  for (Kind::Word kind : {Kind::constant, Kind::cosine, Kind::wsd}) {
    // No warm-up, one step; and a warm-up that fills the run.
    EXPECT_GT(LearningRate(Schedule(kind, 0, 1), 1.0, 1), 0.0);
    EXPECT_EQ(LearningRate(Schedule(kind, 5, 5), 1.0, 5), 1.0);
    EXPECT_GT(LearningRate(Schedule(kind, 5, 5), 1.0, 6), 0.0);
  }
}

TEST(LearningRateDeathTest, StepsBeginAtOne) {
  EXPECT_DEATH(LearningRate(Schedule(Kind::cosine, 1, 2), 1.0, 0), "step");
}

}  // namespace
}  // namespace cubit
