// SPDX-License-Identifier: Apache-2.0
//
// Every rank of every pipeline of 1 to 8 ranks, 1 to 16 micro-batches and 1 to
// 4 chunks, walked by the simulator, which refuses deadlocks, wrong order and
// anything missing or done twice.

#include "parallel/pipeline_schedule.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "parallel/pipeline_simulator.h"
#include "runtime/communicator.h"
#include "runtime/communicator_threads.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

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
    for (const MessageMode mode :
         {MessageMode::kBlocking, MessageMode::kAsynchronous}) {
      const PipelineRun run = Simulate(c, {1, 1}, mode);
      EXPECT_NEAR(run.bubble_fraction, IdealBubbleFraction(c.shape), 1e-12)
          << c.ToString();
      EXPECT_NEAR(run.makespan, 2 * (m * v + p - 1), 1e-9);
    }
  });
}

TEST(PipelineSchedule, TheBubbleStaysWhenBackwardTakesTwiceAsLong) {
  ForEachCase([](const Case& c) {
    const PipelineRun run = Simulate(c, {1, 2}, MessageMode::kAsynchronous);
    EXPECT_NEAR(run.bubble_fraction, IdealBubbleFraction(c.shape), 1e-12)
        << c.ToString();
  });
}

std::string Text(const std::vector<PipelineAction>& actions) {
  std::vector<std::string> words;
  for (const PipelineAction& action : actions) {
    words.push_back(action.ToString());
  }
  return absl::StrJoin(words, ", ");
}

TEST(PipelineSchedule, TwoRanksInWords) {
  auto ranks = MakePipeline(PipelineSchedule::k1F1B, {2, 2, 1});
  ASSERT_TRUE(ranks.ok());
  EXPECT_EQ(Text((*ranks)[0]),
            "F0.0, send F0.0 to 1, F1.0, send F1.0 to 1, recv B0.0 from 1, "
            "B0.0, recv B1.0 from 1, B1.0");
  EXPECT_EQ(Text((*ranks)[1]),
            "recv F0.0 from 0, F0.0, recv F1.0 from 0, B0.0, send B0.0 to 0, "
            "F1.0, B1.0, send B1.0 to 0");
}

TEST(PipelineSchedule, DrawsItself) {
  const Case c = {PipelineSchedule::k1F1B,
                  {3, 4, 1},
                  *MakePipeline(PipelineSchedule::k1F1B, {3, 4, 1})};
  EXPECT_EQ(DrawPipeline(Simulate(c, {1, 1}, MessageMode::kBlocking)),
            "rank 0 | 0  1  2  .  . [0] 3 [1] . [2] . [3]|\n"
            "rank 1 | .  0  1  . [0] 2 [1] 3 [2] . [3] . |\n"
            "rank 2 | .  .  0 [0] 1 [1] 2 [2] 3 [3] .  . |\n");
}

void ExpectRefused(PipelineSchedule schedule, const PipelineShape& shape,
                   const std::string& text) {
  const auto ranks = MakePipeline(schedule, shape);
  EXPECT_EQ(ranks.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(ranks.status().message(), text))
      << ranks.status();
}

TEST(PipelineSchedule, RefusesWithTheNumbers) {
  ExpectRefused(PipelineSchedule::kInterleaved1F1B, {4, 10, 2},
                "interleaved_1f1b with pp_size 4, 10 micro-batches, 2 chunks "
                "per rank: micro-batches must be a multiple of pp_size; 8 or "
                "12 would work");
  ExpectRefused(PipelineSchedule::kInterleaved1F1B, {8, 3, 2},
                "multiple of pp_size; 8 would work");
  ExpectRefused(PipelineSchedule::kInterleaved1F1B, {2, 4, 1},
                "wanted 2 chunks or more");
  ExpectRefused(PipelineSchedule::k1F1B, {2, 4, 3}, "wanted 1 chunk");
  ExpectRefused(PipelineSchedule::kGPipe, {2, 4, 3}, "wanted 1 chunk");
  ExpectRefused(PipelineSchedule::kGPipe, {0, 4, 1}, "at least 1");
  ExpectRefused(PipelineSchedule::kGPipe, {2, 0, 1}, "at least 1");
  ExpectRefused(PipelineSchedule::kGPipe, {2, 4, 0}, "at least 1");
}

// What the simulator says of `ranks` made from the 1F1B schedule of 2 ranks and
// 2 micro-batches.
void ExpectFound(const std::function<void(Programs&)>& damage,
                 const std::string& text, MessageMode mode) {
  auto ranks = MakePipeline(PipelineSchedule::k1F1B, {2, 2, 1});
  ASSERT_TRUE(ranks.ok());
  damage(*ranks);
  const auto run = SimulatePipeline(*ranks, {2, 2, 1}, {1, 1}, mode);
  ASSERT_FALSE(run.ok());
  EXPECT_TRUE(absl::StrContains(run.status().message(), text)) << run.status();
}

TEST(PipelineSimulator, FindsWhatIsWrong) {
  const auto blocking = MessageMode::kBlocking;
  const auto asynchronous = MessageMode::kAsynchronous;
  // The actions of each rank are those of TwoRanksInWords.
  // Rank 0 wants B0 before it computes F1, for which rank 1 waits before B0.
  ExpectFound(
      [](Programs& r) {
        const auto at = r[0].begin();
        std::rotate(at + 2, at + 4, at + 5);
      },
      "deadlock: rank 0 waits in send F0.0 to 1, recv B0.0 from 1; rank 1 "
      "waits in recv F1.0 from 0",
      blocking);
  ExpectFound([](Programs& r) { r[0].erase(r[0].begin() + 1); },
              "rank 0 does send F1.0 to 1 where rank 1 does recv F0.0 from 0",
              asynchronous);
  ExpectFound([](Programs& r) { r[0].erase(r[0].begin() + 3); },
              "rank 1 waits in the input of F1.0", asynchronous);
  ExpectFound([](Programs& r) { r[0].pop_back(); },
              "rank 0 ran 2 forwards and 1 backwards, wanted 2 of each",
              blocking);
  ExpectFound([](Programs& r) { r[0].push_back(r[0][0]); },
              "rank 0, F0.0: runs twice", blocking);
  ExpectFound([](Programs& r) { std::swap(r[1][3], r[1][1]); },
              "rank 1, B0.0: its forward has not run", blocking);
  ExpectFound([](Programs& r) { std::swap(r[0][0], r[0][1]); },
              "rank 0, send F0.0 to 1: it has not been computed", blocking);
  ExpectFound([](Programs& r) { r[1].erase(r[1].begin()); },
              "rank 1, F0.0: its input is missing", blocking);
  ExpectFound([](Programs& r) { r[0][1].peer = 2; },
              "the peer is no other rank", blocking);
  ExpectFound([](Programs& r) { r[0][1].micro_batch = 2; },
              "no such micro-batch", blocking);
  ExpectFound([](Programs& r) { r.pop_back(); }, "1 lists of actions, wanted 2",
              blocking);
}

using Values = std::map<std::pair<int64_t, int>, std::vector<float>>;

// Runs one rank's actions, each batch as one Exchange. Part s adds s + 1 to an
// activation and 1 to a gradient; the first is 1000 times the micro-batch, the
// first gradient is the last activation. Writes the gradients of part 0.
absl::Status RunActions(const std::vector<PipelineAction>& actions,
                        const PipelineShape& shape, Communicator& comm,
                        Values* result) {
  Stream stream;
  Values inputs;     // of forwards; where it is sent, the output
  Values d_outputs;  // of backwards, likewise
  const int last = shape.pp_size * shape.num_chunks - 1;
  for (size_t i = 0; i < actions.size();) {
    std::vector<OutgoingMessage> sends;
    std::vector<IncomingMessage> receives;
    for (; i < actions.size() && actions[i].is_message(); ++i) {
      const PipelineAction& action = actions[i];
      const bool activation =
          action.kind == PipelineActionKind::kSendActivation ||
          action.kind == PipelineActionKind::kRecvActivation;
      auto& value =
          (activation ? inputs : d_outputs)[{action.micro_batch, action.chunk}];
      value.resize(1);
      const Tensor x(value.data(), DType::kFloat32, {1});
      if (action.is_send()) {
        sends.push_back({x, action.peer});
      } else {
        receives.push_back({x, action.peer});
      }
    }
    absl::Status status = comm.Exchange(sends, receives, stream);
    if (!status.ok() || i == actions.size()) return status;
    const PipelineAction& action = actions[i++];
    const std::pair<int64_t, int> key = {action.micro_batch, action.chunk};
    const int part = action.chunk * shape.pp_size + comm.rank();
    auto& x = inputs[key];
    auto& d_y = d_outputs[key];
    if (action.kind == PipelineActionKind::kForward) {
      if (part == 0) x = {1000.0f * static_cast<float>(action.micro_batch)};
      x.at(0) += static_cast<float>(part + 1);
    } else {
      if (part == last) d_y = x;
      d_y.at(0) += 1;
      if (part == 0) (*result)[key] = d_y;
    }
  }
  return absl::OkStatus();
}

// Real messages: every batch is one Exchange of ranks that are threads.
TEST(PipelineSchedule, RunsOverACommunicator) {
  const std::vector<std::pair<PipelineSchedule, PipelineShape>> cases = {
      {PipelineSchedule::kGPipe, {4, 5, 1}},
      {PipelineSchedule::k1F1B, {4, 7, 1}},
      {PipelineSchedule::kInterleaved1F1B, {2, 6, 3}},
      {PipelineSchedule::kInterleaved1F1B, {4, 8, 2}}};
  for (const auto& [schedule, shape] : cases) {
    const auto programs = MakePipeline(schedule, shape);
    ASSERT_TRUE(programs.ok());
    auto ranks =
        MakeThreadCommunicators("pp", shape.pp_size, absl::Seconds(30));
    Values result;
    std::vector<std::thread> threads;
    for (size_t r = 0; r < ranks.size(); ++r) {
      threads.emplace_back([&, &size = shape, r] {
        Values none;
        const absl::Status status = RunActions((*programs)[r], size, *ranks[r],
                                               r == 0 ? &result : &none);
        EXPECT_TRUE(status.ok()) << status;
      });
    }
    for (std::thread& thread : threads) thread.join();
    const int parts = shape.pp_size * shape.num_chunks;
    ASSERT_EQ(result.size(), static_cast<size_t>(shape.num_micro_batches));
    for (const auto& [key, d_x] : result) {
      const int64_t sum = parts * (parts + 1) / 2 + parts;
      EXPECT_EQ(d_x.at(0), static_cast<float>(1000 * key.first + sum));
    }
  }
}

}  // namespace
}  // namespace cubit
