// SPDX-License-Identifier: Apache-2.0
//
// Watchdogs of processes under mpirun: what a user sees when one of them hangs,
// is stopped or fails.

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

#include "runtime/command_line.h"
#include "tests/runtime/mpirun.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

class WatchdogProcesses : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasMpirun()) GTEST_SKIP() << "skipped: no mpirun (openmpi-bin)";
  }
  testing::ProgramResult Run(const std::string& what) {
    return testing::RunProgram(
        MpirunCommand(3, {"tests/runtime/watchdog_program", what}));
  }
};

void ExpectTexts(const testing::ProgramResult& result,
                 const std::vector<std::string>& texts) {
  for (const std::string& text : texts) {
    EXPECT_TRUE(absl::StrContains(result.errors, text))
        << "wanted: " << text << "\ngot: " << result.errors;
  }
}

TEST_F(WatchdogProcesses, ARunThatEndsIsSilent) {
  const testing::ProgramResult result = Run("end");
  EXPECT_EQ(result.exit_status, kExitDone) << result.errors;
  EXPECT_EQ(result.errors, "");
}

TEST_F(WatchdogProcesses, AHungCollectiveIsReported) {
  const testing::ProgramResult result = Run("hang");
  EXPECT_EQ(result.exit_status, kExitHung) << result.errors;
  ExpectTexts(result, {"error: watchdog: hung: rank ",
                       "in Barrier #3 of 0 bytes (pending) of group \"world\": "
                       "arrived: rank 0 (",
                       "not arrived: rank 2 (", "): step 3, the barrier"});
}

TEST_F(WatchdogProcesses, AStoppedProcessIsNamed) {
  const testing::ProgramResult result = Run("stop");
  EXPECT_EQ(result.exit_status, kExitHung) << result.errors;
  ExpectTexts(result, {"warning: watchdog: rank 2 (", ") has been silent for",
                       "error: watchdog: rank 2 (", ") silent for 0.6"});
}

TEST_F(WatchdogProcesses, AFailedCheckEndsAll) {
  const testing::ProgramResult result = Run("check");
  EXPECT_NE(result.exit_status, kExitDone);
  ExpectTexts(result, {"check failed: rank != 1 as asked",
                       "error: watchdog: rank 1 (", "ended with an error: "});
}

TEST_F(WatchdogProcesses, ADeathEndsAll) {
  EXPECT_NE(Run("die").exit_status, kExitDone);
}

}  // namespace
}  // namespace cubit
