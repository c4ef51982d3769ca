// SPDX-License-Identifier: Apache-2.0
//
// Jobs of several ranks through the launcher and mpirun on this machine. Their
// worker is launch_rank_program.

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kFront[] = "tests/integration/launch_program";

class Launch : public ::testing::Test {
 protected:
  void Start(const std::vector<std::string>& arguments,
             const std::vector<std::string>& environment = {}) {
    std::vector<std::string> command = {kFront, "--device=cpu"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    start_ = std::chrono::steady_clock::now();
    program_.emplace(command, environment);
  }
  testing::ProgramResult Wait() { return program_->Wait(); }
  testing::ProgramResult Run(const std::vector<std::string>& arguments) {
    Start(arguments);
    return Wait();
  }
  double Seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() -
                                         start_)
        .count();
  }
  void WaitForRanks(int count) {
    for (int rank = 0; rank < count; ++rank) {
      ASSERT_TRUE(program_->WaitForError("rank " + std::to_string(rank) +
                                         " of " + std::to_string(count)));
    }
  }

  std::optional<testing::Program> program_;
  std::chrono::steady_clock::time_point start_;
};

// The process of a rank, from what it said.
int PidOf(int rank, const std::string& errors) {
  const std::string who = "rank " + std::to_string(rank) + " of ";
  const size_t at = errors.find("pid ", errors.find(who));
  return std::atoi(errors.substr(at + 4).c_str());
}

// A process that has ended, but was not waited for, has no program any more.
bool Lives(int pid) {
  char path[1];
  const std::string link = "/proc/" + std::to_string(pid) + "/exe";
  return pid > 0 && readlink(link.c_str(), path, sizeof(path)) >= 0;
}

TEST_F(Launch, OneRankIsTheWorkerItself) {
  const auto result = Run({});
  EXPECT_EQ(result.exit_status, 0);
  EXPECT_EQ(result.errors, "alone\n");
}

TEST_F(Launch, EmulatesNodesAndSaysSoFirst) {
  const auto result = Run({"--nodes=3", "--all=done"});
  EXPECT_EQ(result.exit_status, 0);
  EXPECT_THAT(result.errors,
              StartsWith("emulating 3 nodes x 1 CPU rank on this machine: "));
  for (const std::string rank : {"0", "1", "2"}) {
    EXPECT_THAT(result.errors, HasSubstr("rank " + rank + " of 3: pid "));
    EXPECT_THAT(result.errors, HasSubstr("local " + rank + " of 3, threads "));
    EXPECT_THAT(result.output, HasSubstr("output of rank " + rank + "\n"));
  }
  EXPECT_THAT(result.errors, Not(HasSubstr("---")));
  EXPECT_THAT(result.errors, Not(HasSubstr("\x01")));
}

TEST_F(Launch, RankZeroShowsItsProgressOnTheTerminal) {
  Start({"--nodes=2", "--all=done"}, {"CUBIT_TERMINAL_WIDTH=12"});
  const auto result = Wait();
  const std::string progress = "\r\033[Ka line that";
  const size_t at = result.errors.find(progress);
  EXPECT_NE(at, std::string::npos) << result.errors;
  EXPECT_EQ(result.errors.find("\r\033[Ka line", at + 1), std::string::npos);
}

TEST_F(Launch, AKilledRankEndsTheJobWithItsReasonFirst) {
  const auto result = Run({"--nodes=3", "--rank_2=kill:9"});
  EXPECT_EQ(result.exit_status, 2);
  EXPECT_LT(Seconds(), 10);
  EXPECT_THAT(result.errors, HasSubstr("error: rank 2 ("));
  EXPECT_THAT(result.errors,
              HasSubstr("killed by signal 9 (SIGKILL); the job ends\n"));
  EXPECT_THAT(result.errors, EndsWith("to go on: train --resume\n"));
  EXPECT_THAT(result.errors, Not(HasSubstr("mpirun")));
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_FALSE(Lives(PidOf(rank, result.errors)));
  }
}

TEST_F(Launch, RanksThatIgnoreSignalsGoDownToo) {
  const auto result = Run({"--nodes=3", "--all=deaf", "--rank_1=exit:3"});
  EXPECT_EQ(result.exit_status, 3);
  EXPECT_LT(Seconds(), 10);
  EXPECT_THAT(result.errors, HasSubstr("ended with exit status 3 (hung"));
  EXPECT_FALSE(Lives(PidOf(0, result.errors)));
  EXPECT_FALSE(Lives(PidOf(2, result.errors)));
}

TEST_F(Launch, AWrongRequestOfOneRankIsOneOfTheJob) {
  const auto result = Run({"--nodes=2", "--rank_1=exit:1"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.errors, HasSubstr("a wrong request or bad input"));
}

TEST_F(Launch, RanksWithAnotherConfigurationAreRefused) {
  const auto result = Run({"--nodes=2", "--all=done", "--config_1=seed: 7"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.errors, HasSubstr("line 1 is \"seed: 7\" here and "
                                       "\"seed: 0\" there"));
  EXPECT_THAT(result.errors, Not(HasSubstr("to go on")));
}

TEST_F(Launch, SigtermLetsEveryRankSave) {
  Start({"--nodes=3"});
  WaitForRanks(3);
  program_->Signal(SIGTERM);
  const auto result = Wait();
  EXPECT_EQ(result.exit_status, 143);
  EXPECT_THAT(result.errors, HasSubstr("stopping after this step"));
  EXPECT_THAT(result.errors, EndsWith("to go on: train --resume\n"));
  for (const std::string rank : {"0", "1", "2"}) {
    EXPECT_THAT(result.errors,
                HasSubstr((rank == "0" ? "" : "[rank " + rank + "] ") +
                          "warning: saved by rank " + rank + "\n"));
  }
}

TEST_F(Launch, SigintToo) {
  Start({"--nodes=2"});
  WaitForRanks(2);
  program_->Signal(SIGINT);
  const auto result = Wait();
  EXPECT_EQ(result.exit_status, 130);
  EXPECT_THAT(result.errors, HasSubstr("[rank 1] warning: saved by rank 1\n"));
}

TEST_F(Launch, ASecondSignalEndsItAtOnce) {
  Start({"--nodes=2", "--all=deaf"});
  WaitForRanks(2);
  program_->Signal(SIGTERM);
  ASSERT_TRUE(program_->WaitForError("stopping"));
  program_->Signal(SIGTERM);
  const auto result = Wait();
  EXPECT_EQ(result.exit_status, 143);
  EXPECT_THAT(result.errors, HasSubstr("without a checkpoint"));
  EXPECT_FALSE(Lives(PidOf(0, result.errors)));
  EXPECT_FALSE(Lives(PidOf(1, result.errors)));
}

TEST_F(Launch, RefusesBeforeAnythingIsStarted) {
  const auto result = Run({"--tp=2"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.errors, HasSubstr("Give --nodes=2"));
  const auto missing = Run({"--nodes=2", "--hostfile=/nowhere"});
  EXPECT_EQ(missing.exit_status, 1);
  EXPECT_THAT(missing.errors, HasSubstr("/nowhere"));
}

}  // namespace
}  // namespace cubit
