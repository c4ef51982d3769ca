// SPDX-License-Identifier: Apache-2.0
//
// Watchdogs of ranks that are threads, over real sockets. Processes:
// watchdog_processes_test.cc; what is concluded from what:
// watchdog_report_test.

#include "runtime/watchdog.h"

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/communicator.h"
#include "runtime/communicator_single.h"
#include "runtime/communicator_threads.h"
#include "runtime/device.h"

namespace cubit {
namespace {

constexpr absl::Duration kLong = absl::Seconds(20);
constexpr absl::Duration kShort = absl::Milliseconds(300);

// How a rank's watchdog ended its process, if it did.
struct Ending {
  int exit_status = 0;
  std::string report;
};

// What a body needs of its rank.
struct Rank {
  Communicator& world;
  Watchdog& watchdog;
  std::future<Ending> ending;
};

WatchdogOptions Options(absl::Duration operations, absl::Duration silence) {
  WatchdogOptions options;
  options.operation_limit = operations;
  options.silence_limit = silence;
  options.hook_fatal_errors = false;
  return options;
}

// Runs `body` on each rank with a watchdog that watches its world.
void OnRanks(int size, const WatchdogOptions& options,
             const std::function<void(Rank&)>& body) {
  auto worlds = MakeThreadCommunicators("world", size, kLong);
  std::vector<std::thread> threads;
  for (auto& world : worlds) {
    threads.emplace_back([&options, &body, world = world.get()] {
      auto promise = std::make_shared<std::promise<Ending>>();
      WatchdogOptions mine = options;
      mine.end_process = [promise](int status, const std::string& report) {
        promise->set_value({status, report});
      };
      auto watchdog = Watchdog::Start(*world, mine);
      ASSERT_TRUE(watchdog.ok()) << watchdog.status();
      (*watchdog)->Watch(world->flight_recorder());
      (*watchdog)->SetStep(7);
      (*watchdog)->SetActivity(absl::StrCat("action of ", world->rank()));
      Rank rank{*world, **watchdog, promise->get_future()};
      body(rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

bool Ended(const Rank& rank) {
  return rank.ending.wait_for(std::chrono::seconds(0)) ==
         std::future_status::ready;
}

void ExpectTexts(const std::string& report,
                 const std::vector<std::string>& texts) {
  for (const std::string& text : texts) {
    EXPECT_TRUE(absl::StrContains(report, text))
        << "wanted: " << text << "\ngot: " << report;
  }
}

TEST(Watchdog, SaysNothingWhileRanksWorkAndWhenTheyEnd) {
  OnRanks(4, Options(kLong, kLong), [](Rank& rank) {
    Stream stream;
    for (int i = 0; i < 100; ++i) {
      ASSERT_TRUE(rank.world.Barrier(stream).ok());
    }
    EXPECT_FALSE(Ended(rank));
  });
}

// Ranks end one after another, much further apart than the limit of silence.
TEST(Watchdog, DoesNotMissRanksThatEndedAsTheyShould) {
  std::promise<void> first_ended;
  auto waiting = first_ended.get_future().share();
  auto worlds = MakeThreadCommunicators("world", 2, kLong);
  std::thread first([&] {
    auto watchdog = Watchdog::Start(*worlds[1], Options(kLong, kShort));
    ASSERT_TRUE(watchdog.ok());
    watchdog->reset();
    first_ended.set_value();
  });
  std::promise<Ending> ending;
  WatchdogOptions options = Options(kLong, kShort);
  options.end_process = [&ending](int status, const std::string& report) {
    ending.set_value({status, report});
  };
  auto watchdog = Watchdog::Start(*worlds[0], options);
  ASSERT_TRUE(watchdog.ok());
  waiting.wait();
  EXPECT_EQ(ending.get_future().wait_for(std::chrono::milliseconds(450)),
            std::future_status::timeout);
  first.join();
}

// Operations 0 and 1 were those of Start.
TEST(Watchdog, ReportsAHungCollectiveOnAllRanks) {
  OnRanks(3, Options(kShort, kLong), [](Rank& rank) {
    Stream stream;
    ASSERT_TRUE(rank.world.Barrier(stream).ok());
    std::thread caller;
    if (rank.world.rank() != 1) {
      caller = std::thread([&rank] {
        Stream s;
        EXPECT_FALSE(rank.world.Barrier(s).ok());
      });
    }
    const Ending ending = rank.ending.get();
    EXPECT_EQ(ending.exit_status, kExitHung);
    ExpectTexts(ending.report,
                {"watchdog: hung: rank ",
                 "in Barrier #3 of 0 bytes (pending) of group \"world\": "
                 "arrived: rank 0 (",
                 "not arrived: rank 1 ("});
    if (rank.world.rank() == 0) {
      ExpectTexts(ending.report,
                  {"): step 7, action of 1; waits for nobody; last operations: "
                   "Barrier #2 of 0 bytes (done) of group \"world\"",
                   "): step 7, action of 2; waits in Barrier #3"});
    }
    rank.world.Abort(absl::AbortedError("over"));
    if (caller.joinable()) caller.join();
  });
}

TEST(Watchdog, AFailureOfAnyRankEndsTheOthers) {
  for (const int failing : {0, 2}) {
    OnRanks(3, Options(kLong, kLong), [failing](Rank& rank) {
      if (rank.world.rank() == failing) {
        rank.watchdog.ReportFailure("the disk is full");
        EXPECT_FALSE(Ended(rank));
        return;
      }
      const Ending ending = rank.ending.get();
      EXPECT_EQ(ending.exit_status, kExitFailed);
      ExpectTexts(ending.report,
                  {absl::StrCat("watchdog: rank ", failing, " ("),
                   "ended with an error: the disk is full"});
    });
  }
}

TEST(Watchdog, HooksFatalErrors) {
  auto worlds = MakeThreadCommunicators("world", 2, kLong);
  std::promise<Ending> ending;
  std::thread other([&] {
    WatchdogOptions options = Options(kLong, kLong);
    options.end_process = [&ending](int status, const std::string& report) {
      ending.set_value({status, report});
    };
    auto watchdog = Watchdog::Start(*worlds[1], options);
    ASSERT_TRUE(watchdog.ok());
    EXPECT_EQ(ending.get_future().wait_for(std::chrono::seconds(20)),
              std::future_status::ready);
  });
  WatchdogOptions options = Options(kLong, kLong);
  options.hook_fatal_errors = true;
  auto watchdog = Watchdog::Start(*worlds[0], options);
  ASSERT_TRUE(watchdog.ok());
  CallFatalHook("a check failed");
  other.join();
}

TEST(Watchdog, WatchesAWorldOfOne) {
  auto world = MakeSingleCommunicator("world");
  // An operation that does not end.
  OperationRecord record;
  record.group = "world";
  world->flight_recorder()->Begin(record);
  std::promise<Ending> promise;
  WatchdogOptions options = Options(kShort, kLong);
  options.end_process = [&promise](int status, const std::string& report) {
    promise.set_value({status, report});
  };
  auto watchdog = Watchdog::Start(*world, options);
  ASSERT_TRUE(watchdog.ok());
  (*watchdog)->Watch(world->flight_recorder());
  EXPECT_EQ(promise.get_future().get().exit_status, kExitHung);
}

}  // namespace
}  // namespace cubit
