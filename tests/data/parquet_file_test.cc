// SPDX-License-Identifier: Apache-2.0

#include "data/parquet_file.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "runtime/philox.h"
#include "tests/data/parquet_files.h"
#include "tests/data/shard_files.h"

namespace cubit {
namespace {

TEST(ParquetSupport, ItsAbsenceNamesTheCommandThatBringsIt) {
  if (ParquetIsSupported()) GTEST_SKIP() << "skipped: Arrow is there";
  const auto groups = ReadParquetGroups("a.parquet");
  EXPECT_EQ(groups.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(groups.status().message(),
                                "a.parquet: is a parquet file"));
  EXPECT_TRUE(
      absl::StrContains(groups.status().message(), "./bazelw install_arrow"));
  EXPECT_FALSE(OpenParquetGroups("a.parquet", 0, 1).ok());
}

struct Row {
  std::string text;
  int64_t stated_tokens;
  bool operator==(const Row& other) const {
    return text == other.text && stated_tokens == other.stated_tokens;
  }
};

class ParquetFileTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!ParquetIsSupported()) {
      GTEST_SKIP() << "skipped: needs Apache Arrow (./bazelw install_arrow)";
    }
    path_ = ScratchFolder("") + "/a.parquet";
    for (int64_t i = 0; i < 1000; ++i) {
      recipe_.rows.push_back(
          {absl::StrCat("Row ", i % 50, " \xC3\xA9", std::string(i % 300, 'x')),
           i});
    }
  }

  static absl::StatusOr<std::vector<Row>> Read(const std::string& path,
                                               int64_t begin, int64_t end) {
    auto source = OpenParquetGroups(path, begin, end);
    if (!source.ok()) return source.status();
    std::vector<Row> rows;
    std::string text;
    for (auto more = (*source)->Next(&text);; more = (*source)->Next(&text)) {
      if (!more.ok()) return more.status();
      if (!*more) return rows;
      rows.push_back({text, (*source)->stated_tokens()});
    }
  }

  void ExpectRefused(const std::string& words) {
    WriteParquet(path_, recipe_);
    const auto groups = ReadParquetGroups(path_);
    const auto rows = Read(path_, 0, 1);
    ASSERT_FALSE(rows.ok()) << words;
    EXPECT_EQ(rows.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(rows.status().message(), path_ + ": "));
    EXPECT_TRUE(absl::StrContains(rows.status().message(), words))
        << rows.status();
  }

  std::string path_;
  ParquetRecipe recipe_;
};

TEST_F(ParquetFileTest, ReadsEveryRowOfEveryGroupHoweverItIsStored) {
  std::vector<Row> wanted;
  for (const ParquetRow& row : recipe_.rows) {
    wanted.push_back({row.text, row.token_count});
  }
  for (int variant = 0; variant < 16; variant += 3) {
    recipe_.compressed = variant % 2 == 0;
    recipe_.dictionary = variant / 2 % 2 == 0;
    recipe_.count_is_int32 = variant / 4 % 2 == 0;
    recipe_.text_is_nullable = variant / 8 % 2 == 0;
    recipe_.group_rows = variant % 3 == 0 ? 7 : 300;
    WriteParquet(path_, recipe_);
    const auto groups = ReadParquetGroups(path_);
    ASSERT_TRUE(groups.ok()) << groups.status();
    int64_t rows = 0;
    for (const ParquetGroup& group : *groups) rows += group.rows;
    EXPECT_EQ(rows, 1000);
    EXPECT_EQ(groups->front().rows, recipe_.group_rows);
    EXPECT_GT(groups->front().text_bytes, 0);
    const auto count = static_cast<int64_t>(groups->size());
    const auto all = Read(path_, 0, count);
    ASSERT_TRUE(all.ok()) << all.status();
    EXPECT_EQ(*all, wanted);
    const auto some = Read(path_, 1, 3);
    ASSERT_TRUE(some.ok()) << some.status();
    EXPECT_EQ(*some, std::vector<Row>(wanted.begin() + recipe_.group_rows,
                                      wanted.begin() + 3 * recipe_.group_rows));
  }
}

TEST_F(ParquetFileTest, RowsWithoutTextAreLeftOutAndCountsMayBeMissing) {
  recipe_.rows = {{"a", 1}, {"", 0}, {"b", 2}};
  recipe_.has_count = false;
  WriteParquet(path_, recipe_);
  EXPECT_EQ(*Read(path_, 0, 1), (std::vector<Row>{{"a", -1}, {"b", -1}}));
}

TEST_F(ParquetFileTest, RefusesColumnsOfOtherKinds) {
  recipe_.text_name = "content";
  ExpectRefused("has no column \"text\" among its 8 columns");
  recipe_.text_name = "text";
  recipe_.text_is_integer = true;
  ExpectRefused("column \"text\" is INT64; a column of strings wanted");
  recipe_.text_is_integer = false;
  recipe_.text_is_repeated = true;
  ExpectRefused("column \"text\" is BYTE_ARRAY inside a list or group");
  recipe_.text_is_repeated = false;
  recipe_.count_is_text = true;
  ExpectRefused("column \"token_count\" is BYTE_ARRAY; a column of integers");
}

TEST_F(ParquetFileTest, RefusesTextThatIsNone) {
  recipe_.rows = {{"a", 1}, {"b", 1, /*is_null=*/true}};
  ExpectRefused("row 1 of row group 0: \"text\" is null");
  recipe_.rows = {{"a", 1}, {"b\xFF", 1}};
  ExpectRefused("row 1 of row group 0: \"text\" is not UTF-8 at byte 2");
}

TEST_F(ParquetFileTest, RefusesWhatIsNotAParquetFile) {
  EXPECT_EQ(ReadParquetGroups(path_).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(ReadParquetGroups(FolderOf(path_)).ok());
  for (const std::string& contents :
       {std::string(), std::string("PAR1"), std::string("PAR1PAR1"),
        "PAR1" + std::string(100, '\xFF') + "PAR1"}) {
    SetFileContents(path_, contents);
    EXPECT_EQ(ReadParquetGroups(path_).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(ParquetFileTest, RefusesGroupsThatAreNotThere) {
  WriteParquet(path_, recipe_);
  EXPECT_FALSE(Read(path_, 0, 2).ok());
  EXPECT_FALSE(Read(path_, -1, 1).ok());
}

TEST_F(ParquetFileTest, RefusesTruncatedFiles) {
  WriteParquet(path_, recipe_);
  const std::string contents = FileContents(path_);
  for (size_t size = 0; size < contents.size(); size += 97) {
    SetFileContents(path_, contents.substr(0, size));
    EXPECT_EQ(ReadParquetGroups(path_).status().code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
}

// The pages have checksums here: whatever is damaged in them is found. Damage
// in the footer must not end the program.
TEST_F(ParquetFileTest, DamageIsAnErrorOrChangesNoText) {
  recipe_.rows.resize(200);
  recipe_.group_rows = 50;
  WriteParquet(path_, recipe_);
  const std::string contents = FileContents(path_);
  const std::vector<Row> wanted = *Read(path_, 0, 4);
  const Philox random(5, "damage");
  int refused = 0;
  for (uint64_t round = 0; round < 150; ++round) {
    std::string damaged = contents;
    char& byte = damaged[random.Bits(2 * round) % contents.size()];
    byte = static_cast<char>(byte + 1 + random.Bits(2 * round + 1) % 255);
    SetFileContents(path_, damaged);
    const auto groups = ReadParquetGroups(path_);
    if (!groups.ok()) {
      ++refused;
      continue;
    }
    const auto rows = Read(path_, 0, static_cast<int64_t>(groups->size()));
    refused += rows.ok() ? 0 : 1;
  }
  EXPECT_GT(refused, 25);
}

}  // namespace
}  // namespace cubit
