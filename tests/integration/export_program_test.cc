// SPDX-License-Identifier: Apache-2.0
//
// //launch:export, --init_from and //launch:report as a user meets them.

#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "launch/metrics.h"
#include "runtime/file_system.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using testing::NewFolder;
using testing::Outcome;
using testing::ReadText;
using testing::RunAsUser;
using testing::WriteText;

using Arguments = std::vector<std::string>;

constexpr char kTrain[] = "launch/train";
constexpr char kExport[] = "launch/export";
constexpr char kReport[] = "launch/report";

class ExportProgramTest : public ::testing::Test {
 protected:
  ExportProgramTest() : home_(NewFolder()) {
    std::string text;
    for (int i = 0; i < 400; ++i) {
      text += "line " + std::to_string(i * 7 % 13) + " of the text\n";
    }
    WriteText(home_ + "/text.txt", text);
  }

  Outcome Run(const char* program, const Arguments& arguments) const {
    return RunAsUser(program, arguments, home_);
  }
  Outcome Train(Arguments more) const {
    const Arguments small = {
        "--set=model.num_layers=1",       "--set=model.hidden_size=32",
        "--set=model.num_heads=2",        "--set=model.seq_len=64",
        "--set=evaluation.max_batches=2", "--data=text.txt"};
    more.insert(more.begin(), small.begin(), small.end());
    return Run(kTrain, more);
  }

  std::string home_;
};

bool Holds(const Outcome& outcome, const std::string& text) {
  return outcome.output.find(text) != std::string::npos;
}

TEST_F(ExportProgramTest, WeightsGoOutAndComeBack) {
  Outcome result = Train({"--output_dir=run", "--steps=30"});
  ASSERT_EQ(result.status, 0) << result.output;
  result = Run(kExport, {"--checkpoint=run", "--out=exported/"});
  ASSERT_EQ(result.status, 0) << result.output;
  EXPECT_TRUE(Holds(result, "step 30")) << result.output;

  // A run that begins with them validates as the first one ended.
  result = Run(kTrain, {"--config=exported/config.textproto", "--steps=1",
                        "--init_from=exported", "--output_dir=again"});
  ASSERT_EQ(result.status, 0) << result.output;
  const auto first = ReadMetrics(home_ + "/run/metrics.jsonl");
  const auto second = ReadMetrics(home_ + "/again/metrics.jsonl");
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(second->validation.front().step, 0);
  EXPECT_EQ(second->validation.front().loss, first->validation.back().loss);
  EXPECT_EQ(second->events.front().event, "init_from");
  EXPECT_NE(second->validation.front().loss, first->validation.front().loss);
}

TEST_F(ExportProgramTest, WrongRequestsAreRefusedInWords) {
  ASSERT_EQ(Train({"--output_dir=run", "--steps=2"}).status, 0);
  ASSERT_EQ(Run(kExport, {"--checkpoint=run", "--out=exported"}).status, 0);
  struct Case {
    const char* program;
    Arguments arguments;
    std::string word;
  };
  const std::vector<Case> cases = {
      {kExport, {"--checkpoint=run"}, "--out"},
      {kExport, {"--checkpoint=run", "--out=exported"}, "--out"},
      {kExport, {"--checkpoint=none", "--out=x"}, "none"},
      {kExport, {"--checkpoint=run", "--out=x", "--to=onnx"}, "llm.c"},
      {kExport, {"--checkpoint=run", "--out=x", "--dtype=int8"}, "bfloat16"},
      {kExport, {"--checkpoint=run", "--out=x", "--to=llm.c"}, "model.mixer"},
      {kTrain,
       {"--resume", "--output_dir=run", "--init_from=exported"},
       "leave one out"},
      {kReport, {}, "runs/tiny"},
      {kReport, {"exported"}, "metrics.jsonl"},
  };
  for (const Case& c : cases) {
    const Outcome result = Run(c.program, c.arguments);
    EXPECT_EQ(result.status, 1) << result.output;
    EXPECT_TRUE(Holds(result, c.word)) << result.output;
  }
  const Outcome other =
      Train({"--output_dir=b", "--steps=2", "--init_from=exported",
             "--set=model.mixer=softmax"});
  EXPECT_EQ(other.status, 1);
  EXPECT_TRUE(Holds(other, "model.mixer")) << other.output;
  EXPECT_FALSE(FileSystem::Posix().Exists(home_ + "/b/metrics.jsonl"));
  EXPECT_FALSE(FileSystem::Posix().Exists(home_ + "/x"));
}

TEST_F(ExportProgramTest, ReportAndEventFileAreWritten) {
  ASSERT_EQ(Train({"--output_dir=run", "--steps=3"}).status, 0);
  const auto names = FileSystem::Posix().List(home_ + "/run/tensorboard");
  ASSERT_TRUE(names.ok()) << names.status();
  EXPECT_EQ(names->size(), 1u);
  Outcome result = Run(kReport, {"run"});
  ASSERT_EQ(result.status, 0) << result.output;
  EXPECT_NE(ReadText(home_ + "/run/report.html").find("\"train\""),
            std::string::npos);
  result = Run(kReport, {"run", "run", "--out=both.html"});
  ASSERT_EQ(result.status, 0) << result.output;
  EXPECT_TRUE(FileSystem::Posix().Exists(home_ + "/both.html"));
}

}  // namespace
}  // namespace cubit
