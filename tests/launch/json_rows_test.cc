// SPDX-License-Identifier: Apache-2.0

#include "launch/json_rows.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::NewFolder;
using testing::WriteText;

class JsonRowsTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& contents) {
    const std::string path = NewFolder() + "/rows.jsonl";
    WriteText(path, contents);
    return path;
  }
  // Values of "a" of the rows, or the error.
  std::string Read(const std::string& contents, int64_t max_rows = 0) {
    std::string values;
    const absl::Status status =
        ReadJsonRows(Write(contents), max_rows, [&](JsonRow& row) {
          values += row.String("a") + ";";
          return row.status();
        });
    return status.ok() ? values : std::string(status.message());
  }
};

TEST_F(JsonRowsTest, ReadsEveryLineThatIsNotBlank) {
  EXPECT_EQ(Read("{\"a\":\"1\"}\r\n\n  \n{\"a\":\"é\\n\"}"), "1;é\n;");
  EXPECT_EQ(Read(""), "");
}

TEST_F(JsonRowsTest, StopsAtTheLimit) {
  EXPECT_EQ(Read("{\"a\":\"1\"}\n{\"a\":\"2\"}\nnot JSON\n", 2), "1;2;");
}

TEST_F(JsonRowsTest, RefusesLinesThatAreNoObjects) {
  EXPECT_THAT(Read("{\"a\":\"1\"}\n[1]\n"),
              HasSubstr("rows.jsonl, line 2: wanted an object, found array"));
  EXPECT_THAT(Read("{\"a\":\n"), HasSubstr("line 1: invalid JSON at byte"));
  EXPECT_THAT(Read("{\"a\":\"\xff\"}\n"), HasSubstr("line 1: invalid JSON"));
  EXPECT_THAT(Read("{\"a\":\"1\",\"a\":\"2\"}\n"), HasSubstr("line 1"));
  EXPECT_THAT(Read("{\"a\":" + std::string(100000, '[')), HasSubstr("line 1"));
}

TEST_F(JsonRowsTest, RefusesALineLongerThanTheLimit) {
  EXPECT_THAT(Read(std::string(kMaxJsonRowBytes + (1 << 17), ' ')),
              HasSubstr("a line is longer than 16777216 bytes"));
}

TEST_F(JsonRowsTest, NamesAFileThatIsNotThere) {
  const absl::Status status = ReadJsonRows(
      "/nowhere/x.jsonl", 0, [](JsonRow&) { return absl::OkStatus(); });
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nowhere/x.jsonl"));
}

TEST(JsonRow, GivesTypedFields) {
  JsonRow row("f, line 1", {{"s", "x"},
                            {"n", 3},
                            {"t", "-4"},
                            {"l", {"a", "b"}},
                            {"o", {{"k", "v"}}}});
  EXPECT_TRUE(row.Has("s"));
  EXPECT_FALSE(row.Has("S"));
  EXPECT_EQ(row.String("s"), "x");
  EXPECT_EQ(row.Integer("n"), 3);
  EXPECT_EQ(row.Integer("t"), -4);
  EXPECT_THAT(row.Strings("l"), ElementsAre("a", "b"));
  EXPECT_EQ(row.Object("o").String("k"), "v");
  EXPECT_TRUE(row.Value("none").is_null());
  EXPECT_TRUE(row.status().ok()) << row.status();
}

TEST(JsonRow, RemembersTheFirstProblem) {
  const nlohmann::json object = {
      {"s", 1}, {"n", "two"}, {"l", {"a", 1}}, {"o", "text"}};
  const auto problem = [&](auto read) {
    JsonRow row("f, line 7", object);
    read(&row);
    row.String("another problem");
    return std::string(row.status().message());
  };
  EXPECT_EQ(problem([](JsonRow* row) { row->String("s"); }),
            "f, line 7: \"s\" is number, wanted a string");
  EXPECT_EQ(problem([](JsonRow* row) { row->Integer("n"); }),
            "f, line 7: \"n\" is string, wanted an integer");
  EXPECT_EQ(problem([](JsonRow* row) { row->Strings("l"); }),
            "f, line 7: \"l\" is number, wanted an array of strings");
  EXPECT_EQ(problem([](JsonRow* row) { row->Object("o"); }),
            "f, line 7: \"o\" is string, wanted an object");
  EXPECT_EQ(problem([](JsonRow* row) { row->String("x"); }),
            "f, line 7: has no \"x\" (wanted a string)");
}

}  // namespace
}  // namespace cubit
