// SPDX-License-Identifier: Apache-2.0

#include "runtime/file_system.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FileSystemTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = JoinPath(::testing::TempDir(), test->name());
    ASSERT_TRUE(files_.Remove(folder_).ok());
    ASSERT_TRUE(files_.CreateFolders(folder_).ok());
  }

  std::string Path(const std::string& name) const {
    return JoinPath(folder_, name);
  }
  void Write(const std::string& path, const std::string& contents) {
    auto file = files_.Create(path);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(
        (*file)
            ->Append(contents.data(), static_cast<int64_t>(contents.size()))
            .ok());
    ASSERT_TRUE((*file)->Close().ok());
  }
  std::string Contents(const std::string& path) {
    auto contents = ReadFile(files_, path, 1 << 20);
    EXPECT_TRUE(contents.ok()) << contents.status();
    return contents.value_or("");
  }

  FileSystem& files_ = FileSystem::Posix();
  std::string folder_;
};

TEST_F(FileSystemTest, WritesInPiecesAndReadsAnyRange) {
  auto file = files_.Create(Path("a"));
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE((*file)->Append("hello ", 6).ok());
  EXPECT_TRUE((*file)->Append(nullptr, 0).ok());
  EXPECT_TRUE((*file)->Append("world", 5).ok());
  EXPECT_TRUE((*file)->Sync().ok());
  EXPECT_TRUE((*file)->Close().ok());
  EXPECT_EQ(files_.FileSize(Path("a")).value_or(-1), 11);
  char part[5] = {};
  EXPECT_TRUE(files_.Read(Path("a"), 4, 5, part).ok());
  EXPECT_EQ(std::string(part, 5), "o wor");
}

TEST_F(FileSystemTest, CreateTruncates) {
  Write(Path("a"), "a long text");
  Write(Path("a"), "short");
  EXPECT_EQ(Contents(Path("a")), "short");
}

TEST_F(FileSystemTest, ReadPastTheEndSaysWhereItEnds) {
  Write(Path("a"), "12345");
  char data[8];
  const absl::Status status = files_.Read(Path("a"), 2, 8, data);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("ends 5 bytes early, at offset 5"));
  EXPECT_THAT(status.message(), HasSubstr(Path("a")));
}

TEST_F(FileSystemTest, PathsMayHoldSpacesAndOtherLetters) {
  const std::string path = Path("übung 1/größe x");
  ASSERT_TRUE(files_.CreateFolders(FolderOf(path)).ok());
  Write(path, "x");
  EXPECT_EQ(Contents(path), "x");
}

TEST_F(FileSystemTest, ErrorsNamePathOperationAndReason) {
  const std::string none = Path("none");
  const absl::Status missing = files_.FileSize(none).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(missing.message(),
            none + ": cannot open: No such file or directory");
  EXPECT_EQ(files_.Create(Path("no/file")).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(files_.List(none).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(files_.SyncFolder(none).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(files_.Rename(none, Path("b")).message(),
              HasSubstr("cannot rename to " + Path("b")));
}

// A wrong request, not a failed run: status 1, do not retry.
TEST_F(FileSystemTest, AFileInTheWayIsAFailedPrecondition) {
  Write(Path("file"), "x");
  EXPECT_EQ(files_.CreateFolders(Path("file/sub")).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(files_.Create(folder_).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReadFile(files_, folder_, 1 << 20).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(FileSystemTest, CreateFoldersIsFineIfTheyExist) {
  EXPECT_TRUE(files_.CreateFolders(Path("a/b/c")).ok());
  EXPECT_TRUE(files_.CreateFolders(Path("a/b/c")).ok());
  EXPECT_TRUE(files_.Exists(Path("a/b/c")));
  EXPECT_FALSE(files_.Exists(Path("a/b/d")));
}

TEST_F(FileSystemTest, ListIsSortedNames) {
  for (const char* name : {"b", "a", "c"}) Write(Path(name), name);
  ASSERT_TRUE(files_.CreateFolders(Path("d/inner")).ok());
  const auto names = files_.List(folder_);
  ASSERT_TRUE(names.ok());
  EXPECT_THAT(*names, ElementsAre("a", "b", "c", "d"));
}

TEST_F(FileSystemTest, RenameReplaces) {
  Write(Path("old"), "old");
  Write(Path("new"), "new");
  ASSERT_TRUE(files_.Rename(Path("new"), Path("old")).ok());
  EXPECT_EQ(Contents(Path("old")), "new");
  EXPECT_FALSE(files_.Exists(Path("new")));
}

TEST_F(FileSystemTest, RemoveTakesFoldersWithTheirContents) {
  ASSERT_TRUE(files_.CreateFolders(Path("a/b")).ok());
  Write(Path("a/b/c"), "x");
  EXPECT_TRUE(files_.Remove(Path("a")).ok());
  EXPECT_FALSE(files_.Exists(Path("a")));
  EXPECT_TRUE(files_.Remove(Path("a")).ok());
}

TEST_F(FileSystemTest, RemoveDoesNotFollowLinks) {
  Write(Path("kept"), "x");
  ASSERT_TRUE(files_.CreateFolders(Path("a")).ok());
  ASSERT_EQ(symlink(folder_.c_str(), Path("a/link").c_str()), 0);
  EXPECT_TRUE(files_.Remove(Path("a")).ok());
  EXPECT_EQ(Contents(Path("kept")), "x");
}

TEST_F(FileSystemTest, ReadFileRefusesWhatIsTooLarge) {
  Write(Path("a"), "12345");
  EXPECT_TRUE(ReadFile(files_, Path("a"), 5).ok());
  const absl::Status status = ReadFile(files_, Path("a"), 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("has 5 bytes, at most 4"));
}

TEST_F(FileSystemTest, WriteFileAtomicallyReplacesAndLeavesNothingElse) {
  ASSERT_TRUE(WriteFileAtomically(files_, Path("a"), "one").ok());
  ASSERT_TRUE(WriteFileAtomically(files_, Path("a"), "").ok());
  ASSERT_TRUE(WriteFileAtomically(files_, Path("a"), "three").ok());
  EXPECT_EQ(Contents(Path("a")), "three");
  EXPECT_THAT(files_.List(folder_).value(), ElementsAre("a"));
}

// A limit on file sizes stands for a full disk: the write stops half way.
TEST_F(FileSystemTest, AFailedAtomicWriteLeavesTheOldContentsAlone) {
  ASSERT_TRUE(WriteFileAtomically(files_, Path("a"), "old").ok());
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit tight = {1000, limit.rlim_max};
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  const absl::Status status =
      WriteFileAtomically(files_, Path("a"), std::string(5000, 'x'));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, ignored);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), HasSubstr("cannot write: File too large"));
  EXPECT_EQ(Contents(Path("a")), "old");
  EXPECT_THAT(files_.List(folder_).value(), ElementsAre("a"));
}

TEST_F(FileSystemTest, AFullDeviceIsResourceExhaustedAndSaysWhatIsFree) {
  auto full = files_.Create("/dev/full");
  ASSERT_TRUE(full.ok());
  const absl::Status status = (*full)->Append("x", 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("No space left on device"));
  EXPECT_THAT(status.message(), HasSubstr("MiB free there"));
}

// A folder named like the temporary file is a user's, and stays.
TEST_F(FileSystemTest, AtomicWriteTouchesNoFolderInItsWay) {
  ASSERT_TRUE(files_.CreateFolders(Path("a.tmp")).ok());
  Write(Path("a.tmp/kept"), "x");
  EXPECT_FALSE(WriteFileAtomically(files_, Path("a"), "new").ok());
  EXPECT_EQ(Contents(Path("a.tmp/kept")), "x");
}

TEST(JoinPath, KeepsAbsoluteNamesAndSingleSlashes) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
  EXPECT_EQ(JoinPath("a", "/b"), "/b");
  EXPECT_EQ(JoinPath("/", "b"), "/b");
}

TEST(FolderOf, IsTheFolder) {
  EXPECT_EQ(FolderOf("a/b/c"), "a/b");
  EXPECT_EQ(FolderOf("a"), ".");
  EXPECT_EQ(FolderOf("/a"), "/");
  EXPECT_EQ(FolderOf("a/"), "a");
}

}  // namespace
}  // namespace cubit
