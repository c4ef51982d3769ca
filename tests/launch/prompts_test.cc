// SPDX-License-Identifier: Apache-2.0

#include "launch/prompts.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::NewFolder;
using testing::WriteText;

TEST(ReadPrompts, TakesLines) {
  const std::string path = NewFolder() + "/prompts.txt";
  WriteText(path, "One day,\r\n\n  two \nlast");
  const auto prompts = ReadPrompts(path);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_THAT(*prompts, ElementsAre("One day,", "  two ", "last"));
}

TEST(ReadPrompts, TakesRowsOfJson) {
  const std::string path = NewFolder() + "/prompts.jsonl";
  WriteText(path, "{\"prompt\":\"a\\nb\"}\n{\"prompt\":\"\",\"id\":1}\n");
  const auto prompts = ReadPrompts(path);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  EXPECT_THAT(*prompts, ElementsAre("a\nb", ""));
  WriteText(path, "{\"text\":\"a\"}\n");
  EXPECT_THAT(std::string(ReadPrompts(path).status().message()),
              HasSubstr("line 1: has no \"prompt\""));
}

TEST(ReadPrompts, RefusesAFileWithoutPrompts) {
  const std::string path = NewFolder() + "/prompts.txt";
  WriteText(path, "\n\n");
  EXPECT_THAT(std::string(ReadPrompts(path).status().message()),
              HasSubstr("holds no prompt"));
  EXPECT_FALSE(ReadPrompts(NewFolder() + "/none.txt").ok());
}

}  // namespace
}  // namespace cubit
