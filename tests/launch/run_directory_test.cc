// SPDX-License-Identifier: Apache-2.0

#include "launch/run_directory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "runtime/file_system.h"
#include "tests/testing/fault_file_system.h"

namespace cubit {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

FileSystem& Files() { return FileSystem::Posix(); }

std::string FreshPath() {
  const std::string path = absl::StrCat(
      testing::TempDir(), "/run é ",
      testing::UnitTest::GetInstance()->current_test_info()->name());
  EXPECT_TRUE(Files().Remove(path).ok());
  return path;
}

std::string Message(const absl::StatusOr<RunDirectory>& directory) {
  return std::string(directory.status().message());
}

std::string HostName() {
  char name[256] = {};
  EXPECT_EQ(gethostname(name, sizeof(name) - 1), 0);
  return name;
}

void WriteLock(const std::string& path, const std::string& text) {
  ASSERT_TRUE(Files().CreateFolders(path).ok());
  ASSERT_TRUE(WriteFileAtomically(Files(), path + "/run.lock", text).ok());
}

TEST(RunDirectory, MakesTheFolderAndNamesItsFiles) {
  const std::string path = FreshPath() + "/a/b";
  const auto directory = RunDirectory::Open(Files(), path, false);
  ASSERT_TRUE(directory.ok()) << directory.status();
  EXPECT_EQ(directory->path(), path);
  EXPECT_EQ(directory->config_path(), path + "/config.textproto");
  EXPECT_EQ(directory->metrics_path(), path + "/metrics.jsonl");
  EXPECT_EQ(directory->checkpoints_path(), path + "/checkpoints");
  EXPECT_EQ(directory->log_path(), path + "/log.txt");
  EXPECT_THAT(*Files().List(path), ElementsAre("run.lock"));
}

TEST(RunDirectory, GivesTheLockBack) {
  const std::string path = FreshPath();
  for (int i = 0; i < 2; ++i) {
    const auto directory = RunDirectory::Open(Files(), path, false);
    ASSERT_TRUE(directory.ok()) << directory.status();
  }
  EXPECT_THAT(*Files().List(path), ElementsAre());
}

TEST(RunDirectory, RefusesASecondRunAndNamesTheFirst) {
  const std::string path = FreshPath();
  const auto first = RunDirectory::Open(Files(), path, false);
  ASSERT_TRUE(first.ok());
  // Whatever the second asks for: a run that is going on comes first.
  ASSERT_TRUE(WriteFileAtomically(Files(), first->metrics_path(), "").ok());
  for (bool resume : {false, true}) {
    const auto second = RunDirectory::Open(Files(), path, resume);
    EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(second),
                AllOf(HasSubstr(absl::StrCat("process ", getpid(), " on ",
                                             HostName(), ", since 20")),
                      HasSubstr("--output_dir")));
  }
  EXPECT_TRUE(Files().Exists(path + "/run.lock"));
}

TEST(RunDirectory, TakesOverFromADeadProcess) {
  const std::string path = FreshPath();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto directory = RunDirectory::Open(Files(), path, false);
    _exit(directory.ok() ? 0 : 1);  // as if killed: nothing is given back
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  ASSERT_TRUE(Files().Exists(path + "/run.lock"));
  testing::internal::CaptureStderr();
  const auto directory = RunDirectory::Open(Files(), path, false);
  const std::string log = testing::internal::GetCapturedStderr();
  ASSERT_TRUE(directory.ok()) << directory.status();
  EXPECT_THAT(log, HasSubstr(absl::StrCat("taken over from process ", child)));
  EXPECT_THAT(*ReadFile(Files(), path + "/run.lock", 4096),
              HasSubstr(absl::StrCat("pid ", getpid(), "\n")));
}

TEST(RunDirectory, AnotherProcessWithTheSamePidIsNotTheHolder) {
  const std::string path = FreshPath();
  WriteLock(path, absl::StrCat("host ", HostName(), "\npid ", getpid(),
                               "\nstarted 2020-01-01T00:00:00Z\n"
                               "process_start_ticks 1\n"));
  EXPECT_TRUE(RunDirectory::Open(Files(), path, false).ok());
}

TEST(RunDirectory, BelievesTheTextWhereTheSystemHasNoLocks) {
  const std::string path = FreshPath();
  std::string text;
  {
    const auto directory = RunDirectory::Open(Files(), path, false);
    text = *ReadFile(Files(), path + "/run.lock", 4096);
  }
  WriteLock(path, text);  // a living process, without the system's lock
  EXPECT_THAT(Message(RunDirectory::Open(Files(), path, false)),
              HasSubstr("is in use by process"));
}

TEST(RunDirectory, BelievesAnotherHost) {
  const std::string path = FreshPath();
  WriteLock(path,
            "host elsewhere.example\npid 1\nstarted 2026-01-01T00:00:00Z\n"
            "process_start_ticks 5\n");
  EXPECT_THAT(Message(RunDirectory::Open(Files(), path, false)),
              AllOf(HasSubstr("process 1 on elsewhere.example"),
                    HasSubstr("delete " + path + "/run.lock")));
}

TEST(RunDirectory, ALockWithoutAHolderIsNone) {
  const std::string path = FreshPath();
  for (const char* text : {"", "host x\npid many\n", "pid 1\n", "\n\n"}) {
    WriteLock(path, text);
    EXPECT_TRUE(RunDirectory::Open(Files(), path, false).ok()) << text;
  }
}

TEST(RunDirectory, ANewRunSparesAnOldOne) {
  const std::string path = FreshPath();
  ASSERT_TRUE(Files().CreateFolders(path + "/checkpoints").ok());
  const auto fresh = RunDirectory::Open(Files(), path, false);
  EXPECT_EQ(fresh.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(fresh),
              AllOf(HasSubstr("checkpoints"), HasSubstr("--resume")));
  EXPECT_THAT(*Files().List(path), ElementsAre("checkpoints"));
  EXPECT_TRUE(RunDirectory::Open(Files(), path, true).ok());
}

TEST(RunDirectory, OtherFilesAreNoRun) {
  const std::string path = FreshPath();
  ASSERT_TRUE(Files().CreateFolders(path).ok());
  ASSERT_TRUE(WriteFileAtomically(Files(), path + "/notes", "mine").ok());
  EXPECT_TRUE(RunDirectory::Open(Files(), path, false).ok());
}

TEST(RunDirectory, ResumingNothingIsAnErrorAndMakesNothing) {
  const std::string path = FreshPath();
  EXPECT_THAT(Message(RunDirectory::Open(Files(), path, true)),
              HasSubstr("no run to resume"));
  EXPECT_FALSE(Files().Exists(path));
}

TEST(RunDirectory, AFolderThatCannotBeWrittenIsRefused) {
  const std::string path = FreshPath();
  bool fault = true;
  int64_t n = 1;
  for (; fault; ++n) {
    FaultPlan plan;
    plan.fail_at = n;
    plan.error = absl::PermissionDeniedError("Read-only file system");
    FaultFileSystem files(&Files(), plan);
    const auto directory = RunDirectory::Open(files, path, false);
    fault = files.fault_happened();
    EXPECT_EQ(directory.ok(), !fault);
    if (!fault) break;
    EXPECT_EQ(directory.status().code(), absl::StatusCode::kPermissionDenied);
    EXPECT_THAT(Message(directory), AllOf(HasSubstr("cannot be written to"),
                                          HasSubstr("Read-only file system"),
                                          HasSubstr("--output_dir")));
    EXPECT_FALSE(Files().Exists(path + "/run.lock"));
  }
  EXPECT_GT(n, 5);
}

TEST(RunDirectory, AFileInItsPlaceIsRefused) {
  const std::string path = FreshPath();
  ASSERT_TRUE(WriteFileAtomically(Files(), path, "a file").ok());
  EXPECT_THAT(Message(RunDirectory::Open(Files(), path + "/run", false)),
              HasSubstr("cannot be written to"));
}

}  // namespace
}  // namespace cubit
