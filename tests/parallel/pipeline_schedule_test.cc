// SPDX-License-Identifier: Apache-2.0
//
// Every rank of every pipeline of 1 to 8 ranks, 1 to 16 micro-batches and 1 to
// 4 chunks, walked by the simulator, which refuses deadlocks, wrong order and
// anything missing or done twice.

#include "parallel/pipeline_schedule.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "parallel/pipeline_simulator.h"

namespace cubit {
namespace {

using Programs = std::vector<std::vector<PipelineAction>>;

constexpr PipelineSchedule kSchedules[] = {PipelineSchedule::kGPipe,
                                           PipelineSchedule::k1F1B,
                                           PipelineSchedule::kInterleaved1F1B};

struct Case {
  PipelineSchedule schedule;
  PipelineShape shape;
  Programs programs;

  std::string ToString() const {
    return absl::StrCat(Name(schedule), " p ", shape.pp_size, " m ",
                        shape.num_micro_batches, " v ", shape.num_chunks);
  }
};

// Calls `check` for all valid combinations; returns their number.
int ForEachCase(const std::function<void(const Case&)>& check) {
  int cases = 0;
  for (const PipelineSchedule schedule : kSchedules) {
    for (int i = 0; i < 8 * 16 * 4; ++i) {
      const PipelineShape shape = {i % 8 + 1, i / 8 % 16 + 1, i / 128 + 1};
      auto programs = MakePipeline(schedule, shape);
      EXPECT_EQ(programs.ok(), CheckPipeline(schedule, shape).ok());
      if (!programs.ok()) continue;
      check({schedule, shape, *std::move(programs)});
      ++cases;
    }
  }
  return cases;
}

PipelineRun Simulate(const Case& c, const PipelineTimes& times,
                     MessageMode mode) {
  auto run = SimulatePipeline(c.programs, c.shape, times, mode);
  EXPECT_TRUE(run.ok()) << c.ToString() << ": " << run.status();
  return run.ok() ? *std::move(run) : PipelineRun();
}

TEST(PipelineSchedule, NoDeadlockAndEachOnceWhetherSendsWaitOrNot) {
  const int cases = ForEachCase([](const Case& c) {
    for (const MessageMode mode :
         {MessageMode::kBlocking, MessageMode::kAsynchronous}) {
      const PipelineRun run = Simulate(c, {1, 2}, mode);
      EXPECT_EQ(run.timeline.size(), c.programs.size());
    }
  });
  // 8 * 16 for each schedule of one chunk; 3 times the (p, m) where p divides
  // m: 16 + 8 + 5 + 4 + 3 + 2 + 2 + 2.
  EXPECT_EQ(cases, 2 * 128 + 3 * 42);
}

TEST(PipelineSchedule, LiveActivationsReachTheirBoundAndNoMore) {
  ForEachCase([](const Case& c) {
    const PipelineRun run = Simulate(c, {1, 1}, MessageMode::kAsynchronous);
    const int64_t m = c.shape.num_micro_batches;
    const int64_t p = c.shape.pp_size;
    const int64_t v = c.shape.num_chunks;
    for (int64_t r = 0; r < p; ++r) {
      const int64_t bound =
          c.schedule == PipelineSchedule::kGPipe ? m
          : c.schedule == PipelineSchedule::k1F1B
              ? std::min(m, p - r)
              : std::min(m * v, 2 * (p - r - 1) + (v - 1) * p + 1);
      const auto rank = static_cast<size_t>(r);
      EXPECT_EQ(run.max_live_activations[rank], bound)
          << c.ToString() << " rank " << r;
      EXPECT_EQ(MaxLiveActivations(c.schedule, c.shape, static_cast<int>(r)),
                bound);
    }
  });
}

TEST(PipelineSchedule, TheBubbleIsTheIdealOneWithEqualTimes) {
  ForEachCase([](const Case& c) {
    const double p = c.shape.pp_size;
    const double m = static_cast<double>(c.shape.num_micro_batches);
    const double v = c.shape.num_chunks;
    EXPECT_NEAR(IdealBubbleFraction(c.shape), (p - 1) / v / (m + (p - 1) / v),
                1e-12);
    const PipelineRun run = Simulate(c, {1, 1}, MessageMode::kAsynchronous);
    EXPECT_NEAR(run.bubble_fraction, IdealBubbleFraction(c.shape), 1e-12)
        << c.ToString();
    EXPECT_NEAR(run.makespan, 2 * (m * v + p - 1), 1e-9);
  });
}

TEST(PipelineSchedule, Explore) {
  double worst = 0;
  std::string worst_name;
  int waits_bad = 0, uneq_bad = 0;
  int64_t flight = 0;
  ForEachCase([&](const Case& c) {
    const double ideal = IdealBubbleFraction(c.shape);
    const PipelineRun run = Simulate(c, {1, 1}, MessageMode::kBlocking);
    if (run.bubble_fraction > ideal + 1e-9) {
      ++waits_bad;
      if (run.bubble_fraction - ideal > worst) {
        worst = run.bubble_fraction - ideal;
        worst_name = c.ToString();
      }
    }
    const PipelineRun run2 = Simulate(c, {1, 2}, MessageMode::kAsynchronous);
    if (run2.bubble_fraction > ideal + 1e-9) {
      ++uneq_bad;
      if (uneq_bad < 5)
        printf("uneq %s %f %f\n", c.ToString().c_str(), run2.bubble_fraction,
               ideal);
    }
    flight = std::max(flight, run2.max_messages_in_flight);
    if (c.shape.pp_size == 4 && c.shape.num_micro_batches == 8 &&
        c.shape.num_chunks < 3) {
      printf("%s\n%s", c.ToString().c_str(),
             DrawPipeline(Simulate(c, {1, 1}, MessageMode::kAsynchronous))
                 .c_str());
    }
  });
  printf("waits_bad %d worst %f %s; uneq %d flight %ld\n", waits_bad, worst,
         worst_name.c_str(), uneq_bad, flight);
}

}  // namespace
}  // namespace cubit
