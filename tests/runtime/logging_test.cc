// SPDX-License-Identifier: Apache-2.0

#include "runtime/logging.h"

#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "runtime/file_system.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

std::string Fresh(const std::string& name) {
  std::string path = JoinPath(::testing::TempDir(), name);
  EXPECT_TRUE(FileSystem::Posix().Remove(path).ok());
  return path;
}

std::vector<std::string> LinesOf(const std::string& path) {
  const auto contents = ReadFile(FileSystem::Posix(), path, 1 << 20);
  EXPECT_TRUE(contents.ok()) << contents.status();
  return absl::StrSplit(contents.value_or(""), '\n', absl::SkipEmpty());
}

TEST(Log, GoesToStandardErrorWithTheSeverity) {
  ::testing::internal::CaptureStderr();
  LogInfo("step 1");
  LogWarning("slow");
  LogError("lost");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "step 1\nwarning: slow\nerror: lost\n");
}

TEST(LogToFile, CopiesTheLinesThatFollowWithTheTime) {
  const std::string path = Fresh("log.txt");
  LogInfo("before");
  ASSERT_TRUE(LogToFile(path).ok());
  LogInfo("100% {of} %s");
  LogWarning("w");
  const std::vector<std::string> lines = LinesOf(path);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], MatchesRegex("....-..-..T..:..:..\\.... 100% \\{of\\} "
                                     "%s"));
  EXPECT_THAT(lines[1], HasSubstr(" warning: w"));
}

TEST(LogDebug, GoesToTheFileAlone) {
  const std::string path = Fresh("debug.txt");
  ASSERT_TRUE(LogToFile(path).ok());
  ::testing::internal::CaptureStderr();
  LogDebug("which kernel");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  const std::vector<std::string> lines = LinesOf(path);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr(" debug: which kernel"));
}

TEST(LogToFile, AppendsToALogThatExists) {
  const std::string path = Fresh("again.txt");
  ASSERT_TRUE(LogToFile(path).ok());
  LogInfo("first run");
  ASSERT_TRUE(LogToFile(path).ok());
  LogInfo("second run");
  EXPECT_EQ(LinesOf(path).size(), 2u);
}

TEST(LogToFile, AFileThatCannotBeWrittenIsAnErrorWithTheReason) {
  const std::string path = JoinPath(::testing::TempDir(), "no/folder/log.txt");
  const absl::Status status = LogToFile(path);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr(path));
  EXPECT_THAT(status.message(), HasSubstr("No such file or directory"));
}

TEST(Log, LinesOfSeveralThreadsStayWhole) {
  const std::string path = Fresh("threads.txt");
  ASSERT_TRUE(LogToFile(path).ok());
  ::testing::internal::CaptureStderr();
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([letter = "abcd"[i]] {
      for (int j = 0; j < 50; ++j) LogInfo(std::string(40, letter));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string terminal = ::testing::internal::GetCapturedStderr();
  const std::vector<std::string> lines =
      absl::StrSplit(terminal, '\n', absl::SkipEmpty());
  EXPECT_EQ(lines.size(), 200u);
  for (const std::string& line : lines) {
    EXPECT_EQ(line, std::string(40, line[0]));
  }
  EXPECT_EQ(LinesOf(path).size(), 200u);
}

// The test's standard error is a file: a status line would only litter it.
TEST(ShowProgress, IsSilentWhereThereIsNoTerminal) {
  EXPECT_FALSE(ProgressIsShown());
  ::testing::internal::CaptureStderr();
  ShowProgress("step 3");
  LogInfo("line");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "line\n");
}

TEST(CrashHandlerDeathTest, PrintsTheStackOfACrash) {
  EXPECT_DEATH(
      {
        InstallCrashHandler("logging_test");
        std::abort();
      },
      "SIGABRT");
}

// Programs that save on SIGTERM install their own handler; the others just end.
TEST(CrashHandlerDeathTest, LeavesSigtermAlone) {
  EXPECT_EXIT(
      {
        InstallCrashHandler("logging_test");
        raise(SIGTERM);
      },
      ::testing::KilledBySignal(SIGTERM), "^$");
}

}  // namespace
}  // namespace cubit
