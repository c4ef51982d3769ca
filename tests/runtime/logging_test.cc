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

class LogAsRankTest : public ::testing::Test {
 protected:
  void TearDown() override {
    LogAsRank(0, 1);
    unsetenv(kTerminalWidthVariable);
  }
  // What the terminal shows of one line of each kind.
  static std::string Lines() {
    ::testing::internal::CaptureStderr();
    LogInfo("i");
    LogWarning("w1\nw2");
    LogError("e");
    return ::testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogAsRankTest, OtherRanksSpeakOfTroubleOnly) {
  LogAsRank(3, 4);
  EXPECT_EQ(Lines(), "[rank 3] warning: w1\n[rank 3] w2\n[rank 3] error: e\n");
  LogAsRank(0, 4);
  EXPECT_EQ(Lines(), "i\nwarning: w1\nw2\nerror: e\n");
}

TEST_F(LogAsRankTest, TheFileHasEveryRanksLines) {
  const std::string path = Fresh("ranks.txt");
  ASSERT_TRUE(LogToFile(path).ok());
  LogAsRank(0, 2);
  LogInfo("a");
  LogAsRank(1, 2);
  LogInfo("b");
  LogDebug("c");
  const std::vector<std::string> lines = LinesOf(path);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_THAT(lines[0], HasSubstr(" [rank 0] a"));
  EXPECT_THAT(lines[1], HasSubstr(" [rank 1] b"));
  EXPECT_THAT(lines[2], HasSubstr(" [rank 1] debug: c"));
}

TEST_F(LogAsRankTest, RankZeroShowsProgressOnTheLaunchersTerminal) {
  setenv(kTerminalWidthVariable, "9", /*replace=*/1);
  LogAsRank(1, 2);
  EXPECT_FALSE(ProgressIsShown());
  LogAsRank(0, 2);
  ASSERT_TRUE(ProgressIsShown());
  ::testing::internal::CaptureStderr();
  ShowProgress("0123456789");
  LogInfo("done");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "\r\033[K01234567\r\033[Kdone\n");
}

}  // namespace
}  // namespace cubit
