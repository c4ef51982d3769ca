// SPDX-License-Identifier: Apache-2.0
//
// //launch:evaluate and //launch:generate as a user meets them, and the tasks
// in the training loop.

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "launch/metrics.h"
#include "runtime/check.h"
#include "runtime/file_system.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;
using testing::NewFolder;
using testing::Outcome;
using testing::ProgramResult;
using testing::ReadText;
using testing::RunAsUser;
using testing::RunProgram;
using testing::UserCommand;
using testing::UserEnvironment;
using testing::WriteText;
using Arguments = std::vector<std::string>;
using Json = nlohmann::json;

constexpr char kTrain[] = "launch/train";
constexpr char kEvaluate[] = "launch/evaluate";
constexpr char kGenerate[] = "launch/generate";
constexpr int kItems = 12;

// A small model that has learnt one sentence of a few words, and tasks that ask
// for it. Trained once for all tests.
class EvaluateTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    home_ = new std::string(NewFolder());
    for (const char* folder : {"text", "tasks"}) {
      CUBIT_CHECK_OK(FileSystem::Posix().CreateFolders(Path(folder)));
    }
    std::string text;
    for (int i = 0; i < 200; ++i) text += Sentence(i) + " ";
    WriteText(Path("text/a.txt"), text);
    // Validation documents are chosen by rule; some of these are.
    for (int i = 0; i < 40; ++i) {
      WriteText(Path("text/b" + std::to_string(i) + ".txt"),
                text.substr(static_cast<size_t>(i) * 100, 800));
    }
    WriteTasks();
    const Outcome trained =
        Train("run", {"--set=evaluation.every_steps=40",
                      "--set=evaluation.tasks=piqa,winogrande",
                      "--set=evaluation.task_data=" + Path("tasks"),
                      "--set=evaluation.max_items=5"});
    CUBIT_CHECK_EQ(trained.status, 0) << trained.output;
  }
  static void TearDownTestSuite() { delete home_; }

  static std::string Path(const std::string& name) {
    return *home_ + "/" + name;
  }
  static std::string Sentence(int i) {
    constexpr const char* kAnimals[] = {"cat", "dog", "hen"};
    return absl::StrCat("the ", kAnimals[i % 3], " sat on the mat.");
  }

  static void WriteTasks() {
    std::string piqa;
    std::string winogrande;
    for (int i = 0; i < kItems; ++i) {
      const bool second = i % 2 == 1;
      const std::string good = "the cat sat on the mat.";
      const std::string bad = "zqx vkj wwq ppo xzz kkj";
      piqa += Json{{"goal", "the dog sat on the mat."},
                   {"sol1", second ? bad : good},
                   {"sol2", second ? good : bad},
                   {"label", second ? 1 : 0}}
                  .dump() +
              "\n";
      winogrande += Json{{"sentence", "the cat sat on the _ the dog sat on."},
                         {"option1", second ? "qqzz" : "mat."},
                         {"option2", second ? "mat." : "qqzz"},
                         {"answer", second ? "2" : "1"}}
                        .dump() +
                    "\n";
    }
    WriteText(Path("tasks/piqa_validation.jsonl"), piqa);
    WriteText(Path("tasks/winogrande_xl_validation.jsonl"), winogrande);
  }

  static Outcome Train(const std::string& run, const Arguments& more) {
    Arguments arguments = {"--set=model.num_layers=1",
                           "--set=model.hidden_size=32",
                           "--set=model.num_heads=2",
                           "--set=model.seq_len=64",
                           "--set=batch.global_batch_size=4",
                           "--set=batch.micro_batch_size=2",
                           "--set=optimizer.learning_rate=1e-2",
                           "--set=evaluation.max_batches=2",
                           "--set=log.every_steps=1",
                           "--steps=80",
                           "--data=" + Path("text"),
                           "--output_dir=" + Path(run)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunAsUser(kTrain, arguments, *home_);
  }
  static Outcome Evaluate(const Arguments& arguments) {
    return RunAsUser(kEvaluate, arguments, *home_);
  }
  // Arguments that score all tasks of `run`.
  static Arguments AllTasks(const Arguments& more) {
    Arguments arguments = {"--checkpoint=" + Path("run"), "--tasks=all",
                           "--task_data=" + Path("tasks")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  static std::vector<Json> Lines(const std::string& path) {
    std::vector<Json> lines;
    for (absl::string_view line :
         absl::StrSplit(ReadText(path), '\n', absl::SkipEmpty())) {
      lines.push_back(Json::parse(line));
    }
    return lines;
  }
  // Objects that //launch:generate --json prints for `arguments`.
  static std::vector<Json> Generate(Arguments arguments) {
    arguments.push_back("--checkpoint=" + Path("run"));
    arguments.push_back("--json");
    const ProgramResult result =
        RunProgram(UserCommand(kGenerate, arguments), UserEnvironment(*home_));
    EXPECT_EQ(result.exit_status, 0) << result.errors;
    std::vector<Json> lines;
    for (absl::string_view line :
         absl::StrSplit(result.output, '\n', absl::SkipEmpty())) {
      lines.push_back(Json::parse(line));
    }
    return lines;
  }

  static std::string* home_;
};

std::string* EvaluateTest::home_ = nullptr;

TEST_F(EvaluateTest, FindsWhatTheModelHasLearnt) {
  const std::string json = Path("results.json");
  const std::string items = Path("items.jsonl");
  const Outcome result =
      Evaluate(AllTasks({"--json=" + json, "--predictions=" + items}));
  ASSERT_EQ(result.status, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("average"));
  const Json results = Json::parse(ReadText(json));
  EXPECT_EQ(results["step"], 80);
  EXPECT_GT(results["tokens"], 0);
  EXPECT_EQ(results["results"]["piqa"]["acc"], 1.0);
  EXPECT_EQ(results["results"]["piqa"]["acc_norm"], 1.0);
  EXPECT_EQ(results["results"]["piqa"]["items"], kItems);
  EXPECT_EQ(results["results"]["winogrande"]["acc"], 1.0);
  EXPECT_EQ(results["average"]["acc"], 1.0);
  const std::vector<Json> lines = Lines(items);
  ASSERT_EQ(lines.size(), 2u * kItems);
  EXPECT_EQ(lines[1]["prediction"], 1);
  EXPECT_EQ(lines[1]["contexts"][0],
            "Question: the dog sat on the mat.\nAnswer:");
}

TEST_F(EvaluateTest, ScoresTheSameInEveryBatchSize) {
  const std::string large = Path("large.jsonl");
  const std::string small = Path("small.jsonl");
  ASSERT_EQ(Evaluate(AllTasks({"--predictions=" + large})).status, 0);
  ASSERT_EQ(Evaluate(AllTasks({"--predictions=" + small, "--batch_tokens=1",
                               "--limit=7"}))
                .status,
            0);
  std::map<std::string, Json> by_name;
  const auto name = [](const Json& line) {
    return absl::StrCat(line["task"].get<std::string>(), " ",
                        line["index"].get<int>());
  };
  for (const Json& line : Lines(large)) by_name[name(line)] = line;
  const std::vector<Json> lines = Lines(small);
  EXPECT_EQ(lines.size(), 14u);
  for (const Json& line : lines) {
    const Json& want = by_name[name(line)];
    EXPECT_EQ(line["prediction"], want["prediction"]);
    for (size_t i = 0; i < line["log_likelihoods"].size(); ++i) {
      const double value = want["log_likelihoods"][i].get<double>();
      EXPECT_NEAR(line["log_likelihoods"][i].get<double>(), value,
                  1e-5 * std::abs(value));
    }
  }
}

TEST_F(EvaluateTest, GivesTheValidationLossOfTraining) {
  const std::string json = Path("validation.json");
  const Outcome result =
      Evaluate({"--checkpoint=" + Path("run"), "--validation",
                "--max_batches=2", "--json=" + json});
  ASSERT_EQ(result.status, 0) << result.output;
  const auto metrics = ReadMetrics(Path("run/metrics.jsonl"));
  ASSERT_TRUE(metrics.ok());
  ASSERT_FALSE(metrics->validation.empty());
  const Json validation = Json::parse(ReadText(json))["validation"];
  EXPECT_EQ(validation["tokens"], metrics->validation.back().tokens);
  EXPECT_NEAR(validation["loss"].get<double>(), metrics->validation.back().loss,
              1e-6);
}

TEST_F(EvaluateTest, TrainingScoresTasksAndIsNotChangedByIt) {
  const auto metrics = ReadMetrics(Path("run/metrics.jsonl"));
  ASSERT_TRUE(metrics.ok());
  std::vector<const EventMetrics*> evaluations;
  for (const EventMetrics& event : metrics->events) {
    if (event.event == "evaluation") evaluations.push_back(&event);
  }
  ASSERT_EQ(evaluations.size(), 2u);
  EXPECT_EQ(evaluations[0]->step, 40);
  EXPECT_EQ(evaluations[1]->step, 80);
  std::map<std::string, MetricValue> fields(evaluations[1]->fields.begin(),
                                            evaluations[1]->fields.end());
  EXPECT_EQ(absl::get<double>(fields["piqa_acc"]), 1.0);
  EXPECT_EQ(absl::get<double>(fields["winogrande_acc"]), 1.0);
  EXPECT_EQ(absl::get<double>(fields["average_acc"]), 1.0);
  EXPECT_EQ(absl::get<int64_t>(fields["items"]), 10);
  EXPECT_EQ(fields.count("winogrande_acc_norm"), 0u);

  const Outcome plain = Train("plain", {"--stop_at_step=60"});
  ASSERT_EQ(plain.status, 0) << plain.output;
  const auto without = ReadMetrics(Path("plain/metrics.jsonl"));
  ASSERT_TRUE(without.ok());
  ASSERT_EQ(without->train.size(), 60u);
  for (size_t i = 0; i < without->train.size(); ++i) {
    EXPECT_EQ(without->train[i].loss, metrics->train[i].loss) << i;
  }
}

TEST_F(EvaluateTest, RefusesWhatItCannotDo) {
  const auto refused = [](const Arguments& arguments,
                          const std::string& reason) {
    const Outcome result = Evaluate(arguments);
    EXPECT_EQ(result.status, 1) << result.output;
    EXPECT_THAT(result.output, HasSubstr(reason));
  };
  const std::string run = "--checkpoint=" + Path("run");
  const std::string data = "--task_data=" + Path("tasks");
  refused({}, "either --checkpoint");
  refused({run}, "nothing to evaluate");
  refused({run, "--tasks=all"}, "--tasks=all needs --task_data");
  refused({run, "--tasks=pika", data}, "did you mean piqa?");
  refused({run, "--tasks=race", data}, "has no file of task race");
  refused({run, "--tasks=piqa,piqa", data}, "names piqa twice");
  refused({run, "--tasks=piqa", data, "--limit=-1"}, "--limit is -1");
  refused({run, "--tasks=piqa=" + Path("none.jsonl")}, "none.jsonl");
  WriteText(Path("bad.jsonl"), "{\"goal\":\"a\"}\n");
  refused({run, "--tasks=piqa=" + Path("bad.jsonl")}, "bad.jsonl, line 1");
  refused({"--checkpoint=" + Path("nowhere"), "--tasks=all", data},
          "does not exist");
  const Outcome train =
      Train("refused", {"--set=evaluation.tasks=race",
                        "--set=evaluation.task_data=" + Path("tasks")});
  EXPECT_EQ(train.status, 1);
  EXPECT_THAT(train.output, HasSubstr("has no file of task race"));
}

TEST_F(EvaluateTest, MeasuresAPresetWithRandomWeights) {
  const Outcome result = Evaluate({"--preset=tiny", "--tasks=piqa", "--limit=2",
                                   "--task_data=" + Path("tasks")});
  ASSERT_EQ(result.status, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("random weights of preset tiny"));
  EXPECT_THAT(result.output, HasSubstr("piqa                2"));
  const Outcome plan =
      Evaluate({"--preset=cubit_125m_table", "--tasks=piqa", "--limit=2",
                "--dry_run", "--task_data=" + Path("tasks")});
  ASSERT_EQ(plan.status, 0) << plan.output;
  EXPECT_THAT(plan.output, HasSubstr("piqa: 2 items, 4 texts to score"));
}

TEST_F(EvaluateTest, GeneratesTheSameTextAloneAndAmongOthers) {
  WriteText(Path("prompts.jsonl"),
            "{\"prompt\":\"the dog sat\"}\n{\"prompt\":\"a\\nb\"}\n");
  const Arguments options = {"--max_tokens=30", "--temperature=1", "--seed=3",
                             "--top_k=40", "--top_p=0.95"};
  Arguments together = options;
  together.push_back("--prompt=the ");
  together.push_back("--prompt=on the mat. the");
  together.push_back("--prompts_file=" + Path("prompts.jsonl"));
  const std::vector<Json> texts = Generate(together);
  ASSERT_EQ(texts.size(), 4u);
  EXPECT_EQ(texts[0]["prompt"], "the ");
  EXPECT_EQ(texts[3]["prompt"], "a\nb");
  for (const Json& text : texts) {
    Arguments alone = options;
    alone.push_back("--prompt=" + text["prompt"].get<std::string>());
    EXPECT_EQ(Generate(alone), std::vector<Json>{text});
  }
}

TEST_F(EvaluateTest, GeneratesUpToAStopString) {
  const std::vector<Json> texts =
      Generate({"--prompt=the cat sat on", "--temperature=0", "--stop=mat",
                "--stop=never", "--max_tokens=40"});
  ASSERT_EQ(texts.size(), 1u);
  EXPECT_EQ(texts[0]["text"], " the ");
  EXPECT_EQ(texts[0]["finish_reason"], "stop");
  EXPECT_LT(texts[0]["tokens"], 10);
  const Outcome refused =
      RunAsUser(kGenerate, {"--checkpoint=" + Path("run"), "--stop="}, *home_);
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.output, HasSubstr("--stop is empty"));
}

}  // namespace
}  // namespace cubit
