// SPDX-License-Identifier: Apache-2.0

#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "data/text_source.h"
#include "runtime/file_system.h"
#include "tests/data/compress.h"

namespace cubit {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// A folder with one of everything; paths in tests are relative to it.
class ListTextFilesTest : public testing::Test {
 protected:
  ListTextFilesTest() : folder_(JoinPath(testing::TempDir(), "list")) {
    std::filesystem::remove_all(folder_);
    for (const char* name :
         {"b.txt", "a.jsonl.gz", "c.pdf", "README", "sub/d.md",
          "sub/deep er/\u00e9.rst.xz", "sub/e.bin", ".hidden.txt",
          ".git/config", "star*.txt", "empty/x.bin"}) {
      WriteTestFile(JoinPath("list", name), "x");
    }
    std::filesystem::create_directory_symlink(folder_, folder_ + "/sub/loop");
    std::filesystem::create_symlink("nothing", folder_ + "/dangling.txt");
    std::filesystem::create_symlink("b.txt", folder_ + "/link.txt");
  }

  // Lists inputs of the folder; results without the folder's name.
  absl::StatusOr<std::vector<std::string>> List(
      const std::vector<std::string>& inputs) {
    std::vector<std::string> paths;
    for (const std::string& input : inputs) {
      paths.push_back(input.empty() ? folder_ : JoinPath(folder_, input));
    }
    auto listed = ListTextFiles(paths);
    if (!listed.ok()) return listed.status();
    const std::string prefix =
        std::filesystem::path(folder_).lexically_normal().string() + "/";
    for (std::string& path : *listed) {
      EXPECT_EQ(path.substr(0, prefix.size()), prefix);
      path.erase(0, prefix.size());
    }
    return listed;
  }

  std::string Fault(const std::vector<std::string>& inputs) {
    const auto listed = List(inputs);
    EXPECT_FALSE(listed.ok());
    return std::string(listed.status().message());
  }

  const std::string folder_;
};

TEST_F(ListTextFilesTest, FindsTheSupportedFilesBelowAFolder) {
  std::filesystem::remove(folder_ + "/a.jsonl.gz");
  EXPECT_THAT(List({""}).value(),
              ElementsAre("README", "b.txt", "link.txt", "star*.txt",
                          "sub/d.md", "sub/deep er/\u00e9.rst.xz"));
  EXPECT_EQ(List({"./"}).value(), List({""}).value());
}

TEST_F(ListTextFilesTest, TakesJsonLinesAloneWhereAFolderHasThem) {
  EXPECT_THAT(List({""}).value(), ElementsAre("a.jsonl.gz"));
  EXPECT_THAT(List({"", "b.txt"}).value(), ElementsAre("a.jsonl.gz", "b.txt"));
}

TEST_F(ListTextFilesTest, ParquetFilesAreDataLikeJsonLines) {
  WriteTestFile("list/sub/g.parquet", "x");
  EXPECT_THAT(List({""}).value(), ElementsAre("a.jsonl.gz", "sub/g.parquet"));
  EXPECT_THAT(List({"sub"}).value(), ElementsAre("sub/g.parquet"));
}

TEST_F(ListTextFilesTest, TokenFilesAreTakenWhereTheyAreNamed) {
  EXPECT_THAT(List({"sub/e.bin"}).value(), ElementsAre("sub/e.bin"));
  EXPECT_THAT(List({"sub/*.bin"}).value(), ElementsAre("sub/e.bin"));
}

TEST_F(ListTextFilesTest, SortsAndDropsRepeats) {
  EXPECT_THAT(
      List({"sub/d.md", "b.txt", "./b.txt", "sub", "sub/../b.txt"}).value(),
      ElementsAre("b.txt", "sub/d.md", "sub/deep er/\u00e9.rst.xz"));
}

TEST_F(ListTextFilesTest, TakesPatternsAndNamesThatLookLikeOne) {
  EXPECT_THAT(List({"?.*"}).value(), ElementsAre("a.jsonl.gz", "b.txt"));
  EXPECT_THAT(List({"s?b"}).value(),
              ElementsAre("sub/d.md", "sub/deep er/\u00e9.rst.xz"));
  EXPECT_THAT(List({"star*.txt"}).value(), ElementsAre("star*.txt"));
}

TEST_F(ListTextFilesTest, TakesAHiddenFileThatIsNamed) {
  EXPECT_THAT(List({".hidden.txt"}).value(), ElementsAre(".hidden.txt"));
}

TEST_F(ListTextFilesTest, SaysWhatWasWrong) {
  EXPECT_THAT(Fault({"b.txt", "b.text"}),
              AllOf(HasSubstr("b.text\": no such file"),
                    HasSubstr("did you mean"), HasSubstr("b.txt\"?")));
  EXPECT_THAT(Fault({"nowhere/b.txt"}), HasSubstr("there is no folder"));
  EXPECT_THAT(Fault({"c.pdf"}),
              AllOf(HasSubstr("c.pdf\": this kind"), HasSubstr(".jsonl")));
  EXPECT_THAT(
      Fault({"b.txt", "empty"}),
      AllOf(HasSubstr("empty\" holds no text files"), HasSubstr(".jsonl")));
  EXPECT_THAT(Fault({"*.nothing"}), HasSubstr("holds no text files"));
  EXPECT_THAT(Fault({"*.pdf"}), HasSubstr("holds no text files"));
  EXPECT_THAT(Fault({}), HasSubstr("no input is named"));
}

}  // namespace
}  // namespace cubit
