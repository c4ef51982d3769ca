// SPDX-License-Identifier: Apache-2.0

#include "tests/runtime/mpi_test_main.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "runtime/check.h"
#include "tests/runtime/mpirun.h"

namespace cubit {
namespace {

std::unique_ptr<MpiSession>& Session() {
  static auto* const session = new std::unique_ptr<MpiSession>;
  return *session;
}

class FailurePrinter : public testing::EmptyTestEventListener {
 public:
  explicit FailurePrinter(int rank) : rank_(rank) {}

  void OnTestStart(const testing::TestInfo& test) override {
    test_ = test.name();
  }

  // GoogleTest holds the lock that UnitTest::current_test_info takes.
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::printf("rank %d: %s: %s:%d: %s\n", rank_, test_.c_str(),
                result.file_name() == nullptr ? "?" : result.file_name(),
                result.line_number(), result.message());
    std::fflush(stdout);
  }

 private:
  const int rank_;
  std::string test_ = "?";
};

TEST(Mpirun, IsInstalled) {
  if (Session() == nullptr) {
    GTEST_SKIP() << "skipped: no mpirun on the PATH (package openmpi-bin)";
  }
  EXPECT_GE(Session()->size(), 1);
}

}  // namespace

MpiSession& TestSession() { return *Session(); }

int RunTestsUnderMpi(int argc, char** argv, int num_ranks) {
  if (!MpiSession::StartedByMpi()) {
    BecomeMpirun(num_ranks, {argv + 1, argv + argc});
    testing::InitGoogleTest(&argc, argv);
    testing::GTEST_FLAG(filter) = "Mpirun.IsInstalled";
    return RUN_ALL_TESTS();
  }
  auto session = MpiSession::Start();
  CUBIT_CHECK_OK(session);
  Session() = *std::move(session);
  const int rank = Session()->rank();
  // One report of the results, by rank 0. GoogleTest took XML_OUTPUT_FILE from
  // the environment before main, and InitGoogleTest makes the reporter.
  if (rank > 0) {
    testing::GTEST_FLAG(output) = "";
    unsetenv("TEST_PREMATURE_EXIT_FILE");
  }
  testing::InitGoogleTest(&argc, argv);
  if (rank > 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailurePrinter(rank));
  }
  const int status = RUN_ALL_TESTS();
  Session().reset();
  return status;
}

}  // namespace cubit
