// SPDX-License-Identifier: Apache-2.0

#include "launch/default_corpus.h"

#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "runtime/file_system.h"

namespace cubit {
namespace {

using ::testing::Contains;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kPages = 60;

void AddPage(const std::string& root, const std::string& name, int64_t bytes) {
  auto file = FileSystem::Posix().Create(JoinPath(root + "/5.36.0/pod", name));
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string text(static_cast<size_t>(bytes), 'x');
  ASSERT_TRUE((*file)->Append(text.data(), bytes).ok());
  ASSERT_TRUE((*file)->Close().ok());
}

// A manual of `pages` pages named perl100.pod and so on.
std::string Manual(const std::string& name, int pages) {
  FileSystem& files = FileSystem::Posix();
  std::string root = JoinPath(::testing::TempDir(), name);
  EXPECT_TRUE(files.Remove(root).ok());
  EXPECT_TRUE(files.CreateFolders(JoinPath(root, "5.36.0/pod")).ok());
  for (int i = 0; i < pages; ++i) {
    AddPage(root, absl::StrCat("perl", 100 + i, ".pod"), 1000);
  }
  return root;
}

TEST(DefaultCorpusFiles, AreThePagesInOrder) {
  const auto files = DefaultCorpusFiles(Manual("plain", kPages));
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->size(), static_cast<size_t>(kPages));
  EXPECT_TRUE(std::is_sorted(files->begin(), files->end()));
  EXPECT_THAT(files->front(), EndsWith("/5.36.0/pod/perl100.pod"));
}

TEST(DefaultCorpusFiles, LeaveOutWhatIsNoProse) {
  const std::string root = Manual("left_out", kPages);
  for (const char* name : {"perltoc.pod", "perlapi.pod", "perldelta.pod",
                           "perl5360delta.pod", "perljp.pod"}) {
    AddPage(root, name, 5000);
  }
  AddPage(root, "perlboot.pod", 294);
  AddPage(root, "perlintro.pod", 5000);
  const auto files = DefaultCorpusFiles(root);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->size(), static_cast<size_t>(kPages + 1));
  EXPECT_THAT(*files, Contains(EndsWith("/perlintro.pod")));
}

// Debian links 5.36 to 5.36.0.
TEST(DefaultCorpusFiles, TakeALinkedVersionOnce) {
  const std::string root = Manual("linked", kPages);
  ASSERT_EQ(symlink("5.36.0", JoinPath(root, "5.36").c_str()), 0);
  const auto files = DefaultCorpusFiles(root);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->size(), static_cast<size_t>(kPages));
}

TEST(DefaultCorpusFiles, APerlWithoutItsManualIsNotFoundAndNamesThePackage) {
  for (const std::string& root : {Manual("bare", 1), Manual("none", 0)}) {
    const absl::Status status = DefaultCorpusFiles(root).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(status.message(), HasSubstr("apt-get install perl-doc"));
    EXPECT_THAT(status.message(), HasSubstr(root));
  }
}

// What the bootstrap installs: enough text, and none of it twice.
TEST(DefaultCorpusFiles, ThisMachinesManualIsMegabytesOfEnglish) {
  const auto files = DefaultCorpusFiles();
  if (!files.ok()) GTEST_SKIP() << "skipped: needs the package perl-doc";
  int64_t bytes = 0;
  std::vector<std::string> names;
  for (const std::string& file : *files) {
    bytes += FileSystem::Posix().FileSize(file).value_or(0);
    names.push_back(file.substr(FolderOf(file).size()));
  }
  EXPECT_GT(bytes, int64_t{4} << 20);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::unique(names.begin(), names.end()), names.end());
  EXPECT_THAT(names, Contains("/perlintro.pod"));
  EXPECT_THAT(names, Not(Contains("/perltoc.pod")));
}

}  // namespace
}  // namespace cubit
