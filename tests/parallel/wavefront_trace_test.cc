// SPDX-License-Identifier: Apache-2.0

#include "parallel/wavefront_trace.h"

#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "parallel/wavefront_drawing.h"
#include "parallel/wavefront_schedule.h"
#include "parallel/wavefront_simulator.h"
#include "runtime/file_system.h"

namespace cubit {
namespace {

WavefrontRun Simulated() {
  const auto run =
      SimulateWavefront(MakeWavefront(WavefrontPass::kForward, true,
                                      WavefrontShape::Zigzag(2, 2, 2), {}),
                        {});
  CUBIT_CHECK_OK(run);
  return *run;
}

size_t Count(const std::string& text, const std::string& what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string::npos;
       at = text.find(what, at + 1)) {
    ++count;
  }
  return count;
}

TEST(WavefrontTrace, KeepsWhatThreadsRecordByStart) {
  WavefrontTrace trace;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&trace, rank] {
      for (int i = 0; i < 50; ++i) {
        trace.Record({rank, {}, 1.0 * (49 - i), 50});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<WavefrontSpan> spans = trace.Spans();
  ASSERT_EQ(spans.size(), 200u);
  for (size_t i = 0; i < spans.size(); ++i) {
    const size_t start = i / 4;
    EXPECT_EQ(spans[i].start, static_cast<double>(start));
    EXPECT_EQ(spans[i].rank, static_cast<int>(i % 4));
  }
}

TEST(WavefrontTrace, IsOneJsonObjectALine) {
  const WavefrontRun run = Simulated();
  std::istringstream lines(ToJsonLines(run.timeline));
  std::string line;
  size_t count = 0;
  for (; std::getline(lines, line); ++count) {
    const auto object = nlohmann::json::parse(line);
    const WavefrontSpan& span = run.timeline[count];
    EXPECT_EQ(object["rank"], span.rank);
    EXPECT_EQ(object["wavefront"], span.wavefront);
    EXPECT_EQ(object["kind"], std::string(Name(span.action.kind)));
    EXPECT_EQ(object["rows"], span.action.rows);
    EXPECT_EQ(object["columns"], span.action.columns);
    EXPECT_EQ(object["group"], span.action.group);
    EXPECT_EQ(object["start"], span.start);
    EXPECT_EQ(object["end"], span.end);
  }
  EXPECT_EQ(count, run.timeline.size());
}

TEST(WavefrontTrace, WritesFilesAndSaysWhyNot) {
  const std::string path = ::testing::TempDir() + "/trace.jsonl";
  ASSERT_TRUE(WriteTextFile(path, "{}\n").ok());
  EXPECT_EQ(*FileSystem::Posix().FileSize(path), 3);
  EXPECT_FALSE(WriteTextFile("/nowhere/trace.jsonl", "").ok());
}

TEST(WavefrontDrawing, HasABoxForEverySpanAndALegendOfKindsThatOccur) {
  const WavefrontRun run = Simulated();
  const std::string svg = DrawWavefront(run.timeline, "2 < 4 ranks", "updates");
  // Spans, three kinds, two lanes, the ground.
  EXPECT_EQ(Count(svg, "<rect"), run.timeline.size() + 3 + 2 + 1);
  EXPECT_EQ(Count(svg, "<title>"), run.timeline.size());
  EXPECT_EQ(Count(svg, ">attend<"), 1u);
  EXPECT_EQ(Count(svg, ">score_gradients<"), 0u);
  EXPECT_EQ(Count(svg, "2 &lt; 4 ranks"), 1u);
  EXPECT_EQ(Count(svg, "<text"), Count(svg, "</text>"));
}

}  // namespace
}  // namespace cubit
