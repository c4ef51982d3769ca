// SPDX-License-Identifier: Apache-2.0

#include "tests/testing/fault_file_system.h"

#include <string>

#include "gtest/gtest.h"

namespace cubit {
namespace {

std::string Scratch(const std::string& name) {
  const std::string folder = testing::TempDir() + "/fault_file_system_" + name;
  EXPECT_TRUE(FileSystem::Posix().Remove(folder).ok());
  EXPECT_TRUE(FileSystem::Posix().CreateFolders(folder).ok());
  return folder;
}

std::string Contents(const std::string& path) {
  auto contents = ReadFile(FileSystem::Posix(), path, 1 << 20);
  return contents.ok() ? *contents : contents.status().ToString();
}

TEST(FaultFileSystem, ForwardsAndCountsWithoutAPlan) {
  const std::string path = Scratch("plain") + "/a";
  FaultFileSystem files(&FileSystem::Posix(), FaultPlan());
  ASSERT_TRUE(WriteFileAtomically(files, path, "hello").ok());
  EXPECT_EQ(Contents(path), "hello");
  // Create, Append, Sync, Close, Rename, SyncFolder.
  EXPECT_EQ(files.calls(), 6);
  EXPECT_FALSE(files.fault_happened());
  char bytes[2];
  EXPECT_TRUE(files.Read(path, 1, 2, bytes).ok());
  EXPECT_EQ(files.calls(), 6) << "reads are not mutating";
}

TEST(FaultFileSystem, FailsTheChosenCallAloneWithTheChosenError) {
  const std::string path = Scratch("one") + "/a";
  FaultPlan plan;
  plan.fail_at = 3;
  plan.error = absl::UnavailableError("cable cut");
  FaultFileSystem files(&FileSystem::Posix(), plan);
  const absl::Status status = WriteFileAtomically(files, path, "hello");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), path + ".tmp: cannot sync: cable cut");
  EXPECT_EQ(files.failed_call(), "sync " + path + ".tmp");
  EXPECT_FALSE(files.Exists(path));
  EXPECT_TRUE(files.Remove(path + ".tmp").ok()) << "later calls work";
}

TEST(FaultFileSystem, TearsTheFailingAppend) {
  const std::string path = Scratch("torn") + "/a";
  FaultPlan plan;
  plan.fail_at = 2;
  FaultFileSystem files(&FileSystem::Posix(), plan);
  auto file = files.Create(path);
  ASSERT_TRUE(file.ok());
  EXPECT_FALSE((*file)->Append("abcdef", 6).ok());
  EXPECT_EQ(Contents(path), "abc");
}

TEST(FaultFileSystem, CrashFailsEveryLaterCallAndLosesWhatWasNotSynced) {
  const std::string folder = Scratch("crash");
  FaultPlan plan;
  plan.fail_at = 7;
  plan.crash = true;
  FaultFileSystem files(&FileSystem::Posix(), plan);
  auto file = files.Create(folder + "/a");  // 1
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE((*file)->Append("abc", 3).ok());                   // 2
  ASSERT_TRUE((*file)->Sync().ok());                             // 3
  ASSERT_TRUE((*file)->Append("def", 3).ok());                   // 4
  ASSERT_TRUE((*file)->Close().ok());                            // 5
  ASSERT_TRUE(files.Rename(folder + "/a", folder + "/b").ok());  // 6
  EXPECT_EQ(Contents(folder + "/b"), "abcdef");
  EXPECT_FALSE(files.SyncFolder(folder).ok());  // 7: the machine stops
  EXPECT_EQ(Contents(folder + "/b"), "abc");
  EXPECT_FALSE(files.Create(folder + "/c").ok());
  EXPECT_FALSE(files.Remove(folder + "/b").ok());
  EXPECT_FALSE(files.List(folder).ok());
  EXPECT_EQ(files.failed_call(), "sync folder " + folder);
}

TEST(FaultFileSystem, CountsReadsWhenAsked) {
  const std::string folder = Scratch("reads");
  ASSERT_TRUE(
      WriteFileAtomically(FileSystem::Posix(), folder + "/a", "x").ok());
  FaultPlan plan;
  plan.fail_at = 2;
  plan.calls = FaultPlan::Calls::kAll;
  FaultFileSystem files(&FileSystem::Posix(), plan);
  EXPECT_TRUE(files.FileSize(folder + "/a").ok());
  EXPECT_FALSE(files.List(folder).ok());
  EXPECT_TRUE(files.List(folder).ok());
}

// The loop that the header shows, on a writer known to be safe.
TEST(FaultFileSystem, EveryFaultLeavesTheOldOrTheNewFile) {
  for (const bool crash : {false, true}) {
    const std::string path = Scratch("loop") + "/a";
    int64_t faults = 0;
    for (int64_t n = 1;; ++n) {
      ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), path, "old").ok());
      FaultPlan plan;
      plan.fail_at = n;
      plan.crash = crash;
      FaultFileSystem files(&FileSystem::Posix(), plan);
      const bool done = WriteFileAtomically(files, path, "brand new").ok();
      EXPECT_EQ(done, !files.fault_happened());
      if (n < 6) {
        EXPECT_EQ(Contents(path), "old") << n;
      } else {
        EXPECT_EQ(Contents(path), "brand new") << n;
      }
      if (!files.fault_happened()) break;
      ++faults;
    }
    EXPECT_EQ(faults, 6);
  }
}

}  // namespace
}  // namespace cubit
