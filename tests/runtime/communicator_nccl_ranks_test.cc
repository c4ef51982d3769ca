// SPDX-License-Identifier: Apache-2.0
//
// communicator_nccl_test with two ranks, each with a GPU or both on one.

#include "absl/strings/match.h"
#include "gtest/gtest.h"

#include "tests/runtime/mpirun.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

TEST(NcclCommunicator, PassesTheSuiteWithTwoRanks) {
  if (!HasMpirun()) GTEST_SKIP() << "skipped: no mpirun (openmpi-bin)";
  const testing::ProgramResult result = testing::RunProgram(
      MpirunCommand(2, {"tests/runtime/communicator_nccl_test"}));
  EXPECT_EQ(result.exit_status, 0) << result.output << result.errors;
  if (absl::StrContains(result.output, "skipped: no GPU")) {
    GTEST_SKIP() << "skipped: no GPU";
  }
  EXPECT_TRUE(absl::StrContains(result.output, "/Nccl2")) << result.output;
}

}  // namespace
}  // namespace cubit
