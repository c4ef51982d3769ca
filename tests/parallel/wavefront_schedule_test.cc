// SPDX-License-Identifier: Apache-2.0
//
// Schedules of 1 to 8 ranks, walked by the simulator, which refuses deadlocks,
// actions before their inputs, messages before their contributions, and
// anything missing or done twice.

#include "parallel/wavefront_schedule.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "parallel/sequence_layout.h"
#include "parallel/wavefront_simulator.h"

namespace cubit {
namespace {

constexpr WavefrontPass kPasses[] = {WavefrontPass::kForward,
                                     WavefrontPass::kBackward};

struct Case {
  WavefrontShape shape;
  int chunks_per_rank = 1;
  WavefrontSchedule schedule;

  std::string ToString() const {
    return absl::StrCat(
        schedule.pass == WavefrontPass::kForward ? "forward" : "backward",
        schedule.attention ? " with attention" : "", ", ranks ", shape.cp_size,
        ", chunks a rank ", chunks_per_rank, ", groups ", shape.num_groups);
  }
};

int ForEachCase(const std::function<void(const Case&)>& check) {
  constexpr int kRanks[] = {1, 2, 3, 4, 8};
  constexpr int kChunks[] = {1, 2, 4};
  constexpr int kGroups[] = {1, 3, 6};
  constexpr int kCases = 5 * 3 * 3 * 2 * 2;
  for (int i = 0; i < kCases; ++i) {
    Case c;
    c.chunks_per_rank = kChunks[i / 5 % 3];
    c.shape = WavefrontShape::Zigzag(kRanks[i % 5], c.chunks_per_rank,
                                     kGroups[i / 15 % 3]);
    c.schedule = MakeWavefront(kPasses[i / 45 % 2], /*attention=*/i / 90 == 1,
                               c.shape, {});
    check(c);
  }
  return kCases;
}

bool SamePrograms(const WavefrontSchedule& a, const WavefrontSchedule& b) {
  if (a.ranks.size() != b.ranks.size()) return false;
  for (size_t r = 0; r < a.ranks.size(); ++r) {
    const auto& x = a.ranks[r].steps;
    const auto& y = b.ranks[r].steps;
    if (!std::equal(x.begin(), x.end(), y.begin(), y.end(),
                    [](const WavefrontStep& s, const WavefrontStep& t) {
                      return s.action == t.action && s.needs == t.needs &&
                             s.posts == t.posts;
                    })) {
      return false;
    }
  }
  return true;
}

TEST(Wavefront, EveryScheduleIsCompleteAndEnds) {
  const int cases = ForEachCase([](const Case& c) {
    const auto run = SimulateWavefront(c.schedule, {});
    EXPECT_TRUE(run.ok()) << c.ToString() << ": " << run.status();
  });
  EXPECT_EQ(cases, 5 * 3 * 3 * 4);
}

TEST(Wavefront, EndsWhateverTheCostsTurnOutToBe) {
  WavefrontCosts slow_messages;
  slow_messages.broadcast = 50;
  slow_messages.reduce = 80;
  WavefrontCosts slow_solves;
  slow_solves[WavefrontActionKind::kSolve] = {30, 30};
  slow_solves[WavefrontActionKind::kAdjointSolve] = {30, 30};
  WavefrontCosts slow_attention;
  slow_attention[WavefrontActionKind::kAttend] = {20, 10};
  slow_attention[WavefrontActionKind::kAttendBackward] = {60, 30};
  ForEachCase([&](const Case& c) {
    for (const auto& costs : {slow_messages, slow_solves, slow_attention}) {
      const auto run = SimulateWavefront(c.schedule, costs);
      EXPECT_TRUE(run.ok()) << c.ToString() << ": " << run.status();
    }
  });
}

TEST(Wavefront, TheSameArgumentsGiveTheSameSchedule) {
  const WavefrontShape shape = WavefrontShape::Zigzag(4, 2, 5);
  for (const WavefrontPass pass : kPasses) {
    const WavefrontSchedule once = MakeWavefront(pass, true, shape, {});
    EXPECT_TRUE(SamePrograms(once, MakeWavefront(pass, true, shape, {})));
  }
}

// So a chunk is received where it stays, and no schedule needs more buffers
// than the sequence has chunks.
TEST(Wavefront, EveryMessageHasAPlaceOfItsOwn) {
  ForEachCase([](const Case& c) {
    std::set<std::tuple<WavefrontMessageKind, int, int>> places;
    for (const WavefrontMessage& message : c.schedule.messages) {
      places.insert({message.kind, message.chunk, message.group});
    }
    EXPECT_EQ(places.size(), c.schedule.messages.size()) << c.ToString();
    const auto run = SimulateWavefront(c.schedule, {});
    ASSERT_TRUE(run.ok());
    for (const int64_t in_flight : run->max_in_flight) {
      EXPECT_LE(in_flight, static_cast<int64_t>(places.size()));
    }
  });
}

TEST(Wavefront, OnlyChunksThatAnotherRankNeedsAreSent) {
  const WavefrontShape shape = WavefrontShape::Zigzag(3, 2, 2);
  for (const WavefrontPass pass : kPasses) {
    const WavefrontSchedule schedule = MakeWavefront(pass, false, shape, {});
    EXPECT_EQ(schedule.messages.size(), 2u * 5u);
    for (const WavefrontMessage& message : schedule.messages) {
      EXPECT_NE(message.chunk, pass == WavefrontPass::kForward ? 5 : 0);
    }
  }
  EXPECT_TRUE(MakeWavefront(WavefrontPass::kForward, true,
                            WavefrontShape::Zigzag(1, 4, 2), {})
                  .messages.empty());
}

TEST(Wavefront, ShapeOfALayoutHasItsOwners) {
  const SequenceLayout layout(64, 4);
  EXPECT_EQ(WavefrontShape::Of(layout, 3).owners,
            WavefrontShape::Zigzag(4, 2, 3).owners);
}

// What makes each schedule wrong is found, and named.
TEST(Wavefront, TheSimulatorRefusesWrongSchedules) {
  const WavefrontShape shape = WavefrontShape::Zigzag(2, 2, 1);
  const auto refuses = [&](const WavefrontSchedule& schedule,
                           const char* words) {
    const auto run = SimulateWavefront(schedule, {});
    ASSERT_FALSE(run.ok()) << words;
    EXPECT_TRUE(absl::StrContains(run.status().message(), words))
        << run.status();
  };
  const WavefrontSchedule right =
      MakeWavefront(WavefrontPass::kForward, true, shape, {});
  WavefrontSchedule wrong = right;
  wrong.ranks[0].steps.pop_back();
  refuses(wrong, "missing");
  wrong = right;
  wrong.ranks[1].steps.push_back(wrong.ranks[1].steps.back());
  refuses(wrong, "runs twice");
  wrong = right;
  wrong.ranks[1].steps[0].needs = 0;
  refuses(wrong, "before its inputs");
  wrong = right;
  wrong.ranks[0].initial_posts = 1;
  refuses(wrong, "posted before its part");
  wrong = right;
  std::swap(wrong.ranks[1].steps[0], wrong.ranks[1].steps[1]);
  refuses(wrong, "before its inputs");
  wrong = right;
  // Rank 0 waits for its own chunk's message before it solves the chunk.
  wrong.ranks[0].steps[0].needs = 1;
  refuses(wrong, "deadlock");
  wrong = right;
  for (WavefrontStep& step : wrong.ranks[0].steps) step.posts = 1;
  refuses(wrong, "deadlock");
}

struct Row {
  int ranks, groups;
  double contiguous[2], zigzag2[2], zigzag4[2];  // alone, with attention
};

// Percent of time busy, from an independent simulation. It leaves open what a
// diagonal block costs (0.6 of an update fits the contiguous column exactly)
// and which of two updates goes first when several groups have some (here:
// that of the first group); zigzag columns agree to two points.
constexpr Row kTable[] = {
    {2, 1, {48, 56}, {62, 92}, {85, 97}},
    {4, 1, {37, 53}, {58, 96}, {83, 99}},
    {8, 1, {33, 51}, {55, 98}, {82, 99}},
    {4, 4, {56, 57}, {84, 99}, {95, 100}},
    {8, 4, {53, 53}, {83, 99}, {95, 100}},
    {8, 16, {54, 54}, {95, 100}, {99, 100}},
};

TEST(Wavefront, EfficienciesAreThoseOfTheTable) {
  for (const Row& row : kTable) {
    for (const bool attention : {false, true}) {
      const auto check = [&](const WavefrontShape& shape, double want,
                             const char* name) {
        const double got = 100 * WavefrontEfficiency(WavefrontPass::kForward,
                                                     attention, shape, {});
        EXPECT_NEAR(got, want, 2.5)
            << name << " ranks " << row.ranks << " groups " << row.groups;
      };
      const int i = attention ? 1 : 0;
      check(WavefrontShape::Contiguous(row.ranks, row.groups),
            row.contiguous[i], "contiguous");
      check(WavefrontShape::Zigzag(row.ranks, 2, row.groups), row.zigzag2[i],
            "zigzag 2P");
      check(WavefrontShape::Zigzag(row.ranks, 4, row.groups), row.zigzag4[i],
            "zigzag 4P");
    }
  }
}

TEST(Wavefront, BackwardWithItsFillersWaitsForLittle) {
  for (const int ranks : {2, 4, 8}) {
    for (const int groups : {4, 16}) {
      const double share =
          WavefrontEfficiency(WavefrontPass::kBackward, true,
                              WavefrontShape::Zigzag(ranks, 2, groups), {});
      EXPECT_GT(share, 0.97) << ranks << " ranks, " << groups << " groups";
      EXPECT_LE(share, 1.0);
    }
  }
}

}  // namespace
}  // namespace cubit
