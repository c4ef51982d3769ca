// SPDX-License-Identifier: Apache-2.0

#include "launch/text_printer.h"

#include <cstdio>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/testing/program.h"

namespace cubit {
namespace {

GeneratedText Text(const std::string& text) {
  GeneratedText result;
  result.text = text;
  result.num_tokens = static_cast<int64_t>(text.size());
  result.reason = FinishReason::kStop;
  return result;
}

class TextPrinterTest : public ::testing::Test {
 protected:
  TextPrinterTest()
      : path_(testing::NewFolder() + "/out"),
        out_(std::fopen(path_.c_str(), "w")) {}
  ~TextPrinterTest() override { std::fclose(out_); }

  // What was written so far.
  std::string Shown() const { return testing::ReadText(path_); }

  std::string path_;
  std::FILE* out_;
};

TEST_F(TextPrinterTest, StreamsASinglePrompt) {
  TextPrinter printer({"Once"}, /*json=*/false, out_);
  EXPECT_EQ(Shown(), "Once");
  printer.OnText(0, " upon");
  EXPECT_EQ(Shown(), "Once upon");
  printer.OnFinish(0, Text(" upon"));
  EXPECT_EQ(Shown(), "Once upon\n");
}

TEST_F(TextPrinterTest, ShowsSeveralInTheOrderOfPrompts) {
  TextPrinter printer({"A", "B", "C"}, /*json=*/false, out_);
  printer.OnText(1, "b");
  printer.OnText(0, "a");
  printer.OnFinish(1, Text("b"));
  printer.OnText(2, "c1");
  EXPECT_EQ(Shown(), "--- prompt 1 of 3\nAa");
  printer.OnFinish(0, Text("a"));
  EXPECT_EQ(Shown(),
            "--- prompt 1 of 3\nAa\n--- prompt 2 of 3\nBb\n"
            "--- prompt 3 of 3\nCc1");
  printer.OnText(2, "c2");
  printer.OnFinish(2, Text("c1c2"));
  EXPECT_EQ(Shown(),
            "--- prompt 1 of 3\nAa\n--- prompt 2 of 3\nBb\n"
            "--- prompt 3 of 3\nCc1c2\n");
}

TEST_F(TextPrinterTest, WritesJsonLinesInTheOrderOfPrompts) {
  TextPrinter printer({"A\"", "B"}, /*json=*/true, out_);
  printer.OnText(1, "never shown in pieces");
  printer.OnFinish(1, Text("b\xff"));
  EXPECT_EQ(Shown(), "");
  printer.OnFinish(0, Text("a\n"));
  EXPECT_EQ(Shown(),
            "{\"prompt\":\"A\\\"\",\"text\":\"a\\n\",\"finish_reason\":"
            "\"stop\",\"tokens\":2}\n"
            "{\"prompt\":\"B\",\"text\":\"b\uFFFD\",\"finish_reason\":"
            "\"stop\",\"tokens\":2}\n");
}

}  // namespace
}  // namespace cubit
