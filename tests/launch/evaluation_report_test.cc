// SPDX-License-Identifier: Apache-2.0

#include "launch/evaluation_report.h"

#include <cmath>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace cubit {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

ScoredTask Scored(const std::string& name, double acc, double acc_norm,
                  size_t items) {
  const auto task = FindEvaluationTask(name);
  CUBIT_CHECK_OK(task);
  ScoredTask scored;
  scored.task = *task;
  scored.file = name + ".jsonl";
  scored.result.acc = {acc, items < 2 ? NAN : 0.01};
  scored.result.acc_norm = {acc_norm, 0.02};
  scored.result.acc_bytes = {acc_norm, 0.02};
  scored.result.items.resize(items);
  return scored;
}

EvaluationReport Report() {
  EvaluationReport report;
  report.model = "runs/a/checkpoints/step_00000010";
  report.step = 10;
  report.tokens = 640;
  report.tasks = {Scored("piqa", 0.5, 0.7, 100),
                  Scored("winogrande", 0.6, 0.9, 50)};
  ValidationResult validation;
  validation.loss = 2;
  validation.tokens = 128;
  validation.loss_by_position = {{"0-127", 2.0}};
  report.validation = validation;
  return report;
}

TEST(AverageOf, TakesAccWhereATaskHasNoAccNorm) {
  const EvaluationReport report = Report();
  const EvaluationAverage average = AverageOf(report.tasks);
  EXPECT_DOUBLE_EQ(average.acc, 0.55);
  EXPECT_DOUBLE_EQ(average.acc_norm, 0.65);
}

TEST(ReportTable, HasARowForEachTaskAndTheAverage) {
  EXPECT_EQ(ReportTable(Report()),
            "task            items  acc              acc_norm        \n"
            "piqa              100   50.00 +- 1.00    70.00 +- 2.00  \n"
            "winogrande         50   60.00 +- 1.00   -               \n"
            "average                 55.00            65.00          \n"
            "validation loss 2.0000, perplexity 7.39 (128 tokens)\n");
}

TEST(ReportJson, HoldsShares) {
  const Json json = Json::parse(ReportJson(Report()));
  EXPECT_EQ(json["step"], 10);
  EXPECT_EQ(json["tokens"], 640);
  EXPECT_EQ(json["results"]["piqa"]["acc"], 0.5);
  EXPECT_EQ(json["results"]["piqa"]["acc_stderr"], 0.01);
  EXPECT_EQ(json["results"]["piqa"]["acc_norm"], 0.7);
  EXPECT_EQ(json["results"]["piqa"]["acc_bytes"], 0.7);
  EXPECT_EQ(json["results"]["piqa"]["items"], 100);
  EXPECT_FALSE(json["results"]["winogrande"].contains("acc_norm"));
  EXPECT_EQ(json["average"]["num_tasks"], 2);
  EXPECT_EQ(json["validation"]["loss"], 2.0);
  EXPECT_EQ(json["validation"]["loss_by_position"]["0-127"], 2.0);
}

TEST(ReportJson, HasNullForTheErrorOfOneItem) {
  EvaluationReport report = Report();
  report.tasks = {Scored("piqa", 1, 1, 1)};
  report.validation.reset();
  const std::string text = ReportJson(report);
  EXPECT_TRUE(Json::parse(text)["results"]["piqa"]["acc_stderr"].is_null());
  EXPECT_THAT(text, Not(HasSubstr("validation")));
  EXPECT_THAT(ReportTable(report), Not(HasSubstr("validation")));
}

TEST(PredictionLines, TellWhatWasScored) {
  PreparedTask prepared;
  prepared.task = *FindEvaluationTask("piqa");
  prepared.items = {{{{"c", " a", 1, 1}, {"c", " b", 1, 1}}, 1}};
  prepared.requests = {{{1, 2}, 1}, {{1, 2, 3}, 2}};
  const auto result = JudgeItems(prepared.items, {-2.5, -1.25});
  ASSERT_TRUE(result.ok());
  const Json line = Json::parse(PredictionLines(prepared, *result));
  EXPECT_EQ(line["task"], "piqa");
  EXPECT_EQ(line["gold"], 1);
  EXPECT_EQ(line["prediction"], 1);
  EXPECT_EQ(line["log_likelihoods"], Json({-2.5, -1.25}));
  EXPECT_EQ(line["contexts"], Json({"c", "c"}));
  EXPECT_EQ(line["continuations"], Json({" a", " b"}));
  EXPECT_EQ(line["target_tokens"], Json({1, 2}));
}

}  // namespace
}  // namespace cubit
