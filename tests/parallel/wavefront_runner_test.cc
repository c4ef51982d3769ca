// SPDX-License-Identifier: Apache-2.0
//
// Schedules carried out by ranks that are threads, on numbers whose sums say
// whether every input had arrived.

#include "parallel/wavefront_runner.h"

#include <algorithm>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "parallel/wavefront_schedule.h"
#include "parallel/wavefront_trace.h"
#include "runtime/communicator_threads.h"
#include "runtime/tensor.h"
#include "runtime/watchdog.h"

namespace cubit {
namespace {

// Forward: x_c = group + 1 + sum of x before it, so x_c = (group + 1) 2^c.
// Backward: every attended pair gives dX of its columns 1, so that dX of chunk
// c is the number of chunks from c on; y_c = dX_c + sum of y after it. Each
// score pair gives the keys of its columns y of its rows.
class Numbers : public WavefrontWork {
 public:
  Numbers(const WavefrontShape& shape, int rank)
      : shape_(shape),
        rank_(rank),
        solution_(static_cast<size_t>(shape.num_groups) * shape.owners.size()),
        sums_(solution_.size()),
        keys_(solution_.size()) {}

  void Compute(const WavefrontAction& action) override {
    const int g = action.group;
    double& rows = At(sums_, g, action.rows);
    double& columns = At(sums_, g, action.columns);
    switch (action.kind) {
      case WavefrontActionKind::kSolve:
        At(solution_, g, action.rows) = rows + g + 1;
        break;
      case WavefrontActionKind::kUpdate:
        rows += At(solution_, g, action.columns);
        break;
      case WavefrontActionKind::kAttend:
        attended_ += At(solution_, g, action.columns);
        break;
      case WavefrontActionKind::kAttendBackward:
        At(solution_, g, action.columns) += 1;
        break;
      case WavefrontActionKind::kAdjointUpdate:
        columns += At(solution_, g, action.rows);
        break;
      case WavefrontActionKind::kAdjointSolve:
        At(solution_, g, action.columns) += columns;
        break;
      case WavefrontActionKind::kScoreGradients:
        At(keys_, g, action.columns) += At(solution_, g, action.rows);
        break;
    }
    ++actions_;
  }

  absl::Status Communicate(const WavefrontMessage& message,
                           Communicator& communicator,
                           Stream& stream) override {
    if (message.kind == WavefrontMessageKind::kBroadcast) {
      const Tensor x(&At(solution_, message.group, message.chunk),
                     DType::kFloat64, {1});
      return communicator.Broadcast(x, shape_.owner(message.chunk), stream);
    }
    auto& parts = message.kind == WavefrontMessageKind::kReduceSolutionGradient
                      ? solution_
                      : keys_;
    const Tensor x(&At(parts, message.group, 0), DType::kFloat64,
                   {shape_.num_chunks()});
    return communicator.AllReduce(x, x, ReduceOp::kSum, stream);
  }

  double solution(int group, int chunk) { return At(solution_, group, chunk); }
  double keys(int group, int chunk) { return At(keys_, group, chunk); }
  double attended() const { return attended_; }
  int actions() const { return actions_; }
  int rank() const { return rank_; }

 private:
  double& At(std::vector<double>& values, int group, int chunk) {
    return values[static_cast<size_t>(group) *
                      static_cast<size_t>(shape_.num_chunks()) +
                  static_cast<size_t>(chunk)];
  }

  const WavefrontShape shape_;
  const int rank_;
  std::vector<double> solution_;
  std::vector<double> sums_;
  std::vector<double> keys_;
  double attended_ = 0;
  int actions_ = 0;
};

// Runs the schedule on every rank and hands out what each has. `observers` has
// one for each, or is empty.
void RunRanks(const WavefrontSchedule& schedule,
              const std::vector<WavefrontObserver>& observers,
              const std::function<void(Numbers&)>& check) {
  auto communicators =
      MakeThreadCommunicators("cp", schedule.shape.cp_size, absl::Seconds(30));
  std::vector<std::unique_ptr<Numbers>> ranks;
  std::vector<std::thread> threads;
  std::vector<absl::Status> status(communicators.size());
  for (size_t r = 0; r < communicators.size(); ++r) {
    ranks.push_back(
        std::make_unique<Numbers>(schedule.shape, static_cast<int>(r)));
    threads.emplace_back([&, r, work = ranks.back().get()] {
      Stream stream;
      CommunicationLane lane(std::move(communicators[r]));
      status[r] = RunWavefront(schedule, lane,
                               observers.empty() ? nullptr : &observers[r],
                               stream, work);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t r = 0; r < ranks.size(); ++r) {
    ASSERT_TRUE(status[r].ok()) << status[r];
    check(*ranks[r]);
  }
}

void CheckForward(const WavefrontShape& shape, Numbers& work) {
  const int last = shape.num_chunks() - 1;
  double attended = 0;
  for (int g = 0; g < shape.num_groups; ++g) {
    for (int c = 0; c <= last; ++c) {
      const double x = (g + 1.0) * (1 << c);
      const bool own = shape.owner(c) == work.rank();
      if (own) attended += 2 * x - g - 1;
      // Nobody else needs the last chunk.
      if (c < last || own) {
        EXPECT_EQ(work.solution(g, c), x) << "chunk " << c;
      }
    }
  }
  EXPECT_EQ(work.attended(), attended);
}

TEST(WavefrontRunner, ForwardSolvesOnEveryRank) {
  for (const int ranks : {1, 2, 3, 4}) {
    for (const int chunks : {1, 2, 4}) {
      const auto shape = WavefrontShape::Zigzag(ranks, chunks, 3);
      RunRanks(MakeWavefront(WavefrontPass::kForward, true, shape, {}), {},
               [&](Numbers& work) { CheckForward(shape, work); });
    }
  }
}

void CheckBackward(const WavefrontShape& shape, Numbers& work) {
  for (int g = 0; g < shape.num_groups; ++g) {
    // Sums of y from the chunk on, which are what its keys get.
    double sum = 0;
    for (int c = shape.num_chunks() - 1; c >= 0; --c) {
      const double y = shape.num_chunks() - c + sum;
      sum += y;
      EXPECT_EQ(work.keys(g, c), sum) << "chunk " << c;
      if (c > 0 || shape.owner(0) == work.rank()) {
        EXPECT_EQ(work.solution(g, c), y) << "chunk " << c;
      }
    }
  }
}

TEST(WavefrontRunner, BackwardSumsSolvesAndSumsAgain) {
  for (const int ranks : {1, 2, 4}) {
    const auto shape = WavefrontShape::Zigzag(ranks, 2, 3);
    RunRanks(MakeWavefront(WavefrontPass::kBackward, true, shape, {}), {},
             [&](Numbers& work) { CheckBackward(shape, work); });
  }
}

TEST(WavefrontRunner, TracesEveryAction) {
  const WavefrontSchedule schedule = MakeWavefront(
      WavefrontPass::kForward, true, WavefrontShape::Zigzag(2, 2, 2), {});
  WavefrontTrace trace;
  size_t actions = 0;
  WavefrontObserver observer;
  observer.trace = &trace;
  RunRanks(schedule, {observer, observer}, [&](Numbers& work) {
    actions += static_cast<size_t>(work.actions());
  });
  EXPECT_EQ(trace.Spans().size(), actions);
  EXPECT_EQ(actions, 2u * 2u * 10u);
  RunRanks(schedule, {observer, observer}, [](Numbers&) {});
  size_t second = 0;
  for (const WavefrontSpan& span : trace.Spans()) {
    if (span.wavefront == 1) ++second;
  }
  EXPECT_EQ(second, actions);
}

TEST(WavefrontRunner, TellsOfEveryActionAndOfTheEnd) {
  for (const auto pass : {WavefrontPass::kForward, WavefrontPass::kBackward}) {
    const WavefrontSchedule schedule =
        MakeWavefront(pass, true, WavefrontShape::Zigzag(2, 2, 2), {});
    std::vector<std::vector<std::string>> told(2);
    std::vector<WavefrontObserver> observers(2);
    for (size_t r = 0; r < 2; ++r) {
      observers[r].watch = [&mine = told[r]](const WavefrontAction* action) {
        mine.push_back(action == nullptr ? "end" : action->ToString());
      };
    }
    RunRanks(schedule, observers, [](Numbers&) {});
    for (size_t r = 0; r < 2; ++r) {
      std::vector<std::string> wanted;
      for (const WavefrontStep& step : schedule.ranks[r].steps) {
        wanted.push_back(step.action.ToString());
      }
      wanted.emplace_back("end");
      EXPECT_EQ(told[r], wanted) << "rank " << r;
    }
  }
}

// Rank 1 does not come: rank 0 waits for it, and the report says in what.
TEST(WavefrontRunner, AWatchdogNamesTheActionThatWaits) {
  const WavefrontSchedule schedule = MakeWavefront(
      WavefrontPass::kForward, true, WavefrontShape::Zigzag(2, 2, 2), {});
  auto communicators = MakeThreadCommunicators("cp", 2, absl::Seconds(30));
  auto control = MakeThreadCommunicators("control", 2, absl::Seconds(30));
  std::vector<std::promise<std::string>> reports(2);
  std::vector<std::thread> threads;
  for (size_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      WatchdogOptions options;
      options.operation_limit = absl::Milliseconds(300);
      options.hook_fatal_errors = false;
      options.end_process = [&](int, const std::string& report) {
        reports[r].set_value(report);
      };
      auto watchdog = Watchdog::Start(*control[r], options);
      ASSERT_TRUE(watchdog.ok()) << watchdog.status();
      (*watchdog)->Watch(communicators[r]->flight_recorder());
      CommunicationLane lane(std::move(communicators[r]));
      if (r == 1) {
        EXPECT_FALSE(reports[1].get_future().get().empty());
        lane.Abort(absl::AbortedError("over"));
        return;
      }
      WavefrontObserver observer;
      observer.watch = [&](const WavefrontAction* action) {
        if (action != nullptr) (*watchdog)->SetActivity(action->ToString());
      };
      Stream stream;
      Numbers work(schedule.shape, 0);
      EXPECT_FALSE(RunWavefront(schedule, lane, &observer, stream, &work).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string report = reports[0].get_future().get();
  const auto& steps = schedule.ranks[0].steps;
  const auto waits =
      std::find_if(steps.begin(), steps.end(),
                   [](const WavefrontStep& step) { return step.needs > 0; });
  ASSERT_NE(waits, steps.end());
  EXPECT_TRUE(absl::StrContains(
      report, waits->action.ToString() + "; waits in Broadcast #0"))
      << report;
}

TEST(WavefrontRunner, AFailedGroupEndsTheRunWithItsError) {
  const WavefrontSchedule schedule = MakeWavefront(
      WavefrontPass::kForward, true, WavefrontShape::Zigzag(3, 2, 2), {});
  auto communicators = MakeThreadCommunicators("cp", 3, absl::Seconds(30));
  std::vector<absl::Status> status(3);
  std::vector<std::thread> threads;
  for (size_t r = 0; r < 3; ++r) {
    threads.emplace_back([&, r] {
      Stream stream;
      CommunicationLane lane(std::move(communicators[r]));
      if (r == 1) {
        lane.Abort(absl::UnavailableError("rank 1 gives up"));
        status[r] = lane.status();
        return;
      }
      Numbers work(schedule.shape, static_cast<int>(r));
      status[r] = RunWavefront(schedule, lane, nullptr, stream, &work);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& s : status) {
    EXPECT_EQ(s.code(), absl::StatusCode::kUnavailable) << s;
  }
}

}  // namespace
}  // namespace cubit
