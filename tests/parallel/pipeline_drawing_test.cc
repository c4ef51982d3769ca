// SPDX-License-Identifier: Apache-2.0

#include "parallel/pipeline_drawing.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "parallel/pipeline_schedule.h"
#include "parallel/pipeline_simulator.h"

namespace cubit {
namespace {

using testing::HasSubstr;
using testing::Not;

PipelineRun Simulate(PipelineSchedule schedule, const PipelineShape& shape,
                     const PipelineTimes& times = PipelineTimes(),
                     MessageMode mode = MessageMode::kBlocking) {
  const auto programs = MakePipeline(schedule, shape);
  EXPECT_TRUE(programs.ok()) << programs.status();
  const auto run = SimulatePipeline(*programs, shape, times, mode);
  EXPECT_TRUE(run.ok()) << run.status();
  return *run;
}

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos;
       at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

TEST(DrawPipelineSvg, HasABoxAndANumberForEveryAction) {
  const PipelineRun run =
      Simulate(PipelineSchedule::k1F1B, {/*pp_size=*/3, 5, 1});
  const std::string svg = DrawPipelineSvg(run, "a < b & c");
  EXPECT_THAT(svg, HasSubstr("a &lt; b &amp; c"));
  // 3 ranks x 5 micro-batches, and one in the legend.
  EXPECT_EQ(Count(svg, "\"box f0\""), 16);
  EXPECT_EQ(Count(svg, "\"box b0\""), 16);
  EXPECT_EQ(Count(svg, "class=\"label\""), 30);
  EXPECT_EQ(Count(svg, "class=\"lane\""), 3);
  EXPECT_EQ(Count(svg, "<title>B4.0, "), 3);
  // (p - 1) / (m + p - 1) = 2 / 7.
  EXPECT_THAT(svg, HasSubstr("waiting 28.6% of the time"));
  EXPECT_THAT(svg, Not(HasSubstr("chunks")));
  EXPECT_EQ(svg.substr(0, 4), "<svg");
  EXPECT_EQ(svg.substr(svg.size() - 7), "</svg>\n");
}

TEST(DrawPipelineSvg, ShadesChunks) {
  const PipelineRun run =
      Simulate(PipelineSchedule::kInterleaved1F1B, {2, 4, 2});
  const std::string svg = DrawPipelineSvg(run, "");
  EXPECT_EQ(Count(svg, "\"box f1\""), 9);
  EXPECT_THAT(svg, HasSubstr("forward (chunks)"));
}

// The first box of rank 1 begins where the first forward of rank 0 ends: one
// eighth of the width for 2 ranks and 3 micro-batches (4 forwards, 4
// backwards).
TEST(DrawPipelineSvg, BoxesStandWhereTimesSay) {
  const std::string svg =
      DrawPipelineSvg(Simulate(PipelineSchedule::kGPipe, {2, 3, 1}), "");
  EXPECT_THAT(svg, HasSubstr("x=\"176.50\" y=\"94\" width=\"112.50\""));
}

TEST(SimulatePipeline, TakesTimesOfParts) {
  PipelineTimes times;
  times.part_forward = {1, 3};
  times.part_backward = {2, 5};
  const PipelineRun run = Simulate(PipelineSchedule::k1F1B, {2, 4, 1}, times);
  // The second stage never waits after its first forward: 1 + 4 (3 + 5), and
  // the last backward of the first.
  EXPECT_DOUBLE_EQ(run.makespan, 1 + 4 * 8 + 2);
  EXPECT_DOUBLE_EQ(run.bubble_fraction, 1 - (4 * 3 + 4 * 8) / (2 * 35.0));
}

TEST(SimulatePipeline, MessagesTakeTime) {
  PipelineTimes times;
  times.message = 0.25;
  // One micro-batch: F, message, F, B, message, B.
  for (const auto mode : {MessageMode::kBlocking, MessageMode::kAsynchronous}) {
    EXPECT_DOUBLE_EQ(
        Simulate(PipelineSchedule::k1F1B, {2, 1, 1}, times, mode).makespan,
        4.5);
  }
  // Waited for, they cost more than beside the computation.
  const PipelineShape shape = {4, 8, 1};
  const double ideal = Simulate(PipelineSchedule::k1F1B, shape).makespan;
  const double beside = Simulate(PipelineSchedule::k1F1B, shape, times,
                                 MessageMode::kAsynchronous)
                            .makespan;
  const double waited =
      Simulate(PipelineSchedule::k1F1B, shape, times).makespan;
  EXPECT_LT(ideal, beside);
  EXPECT_LT(beside, waited);
}

}  // namespace
}  // namespace cubit
