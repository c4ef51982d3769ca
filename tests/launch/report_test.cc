// SPDX-License-Identifier: Apache-2.0

#include "launch/report.h"

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include <nlohmann/json.hpp>

#include "tests/testing/program.h"

namespace cubit {
namespace {

using nlohmann::json;
using testing::NewFolder;
using testing::WriteText;

// The numbers in a page, as its script reads them.
json DataOf(const std::string& page) {
  const std::string begin = "id=\"data\">";
  const size_t from = page.find(begin) + begin.size();
  const size_t to = page.find("</script>", from);
  return json::parse(page.substr(from, to - from));
}

ReportRun RunOf(int64_t steps) {
  ReportRun run;
  run.name = "a";
  run.config = {{"model.mixer", "cubit"}, {"model.cubit.share", "true"}};
  for (int64_t step = 1; step <= steps; ++step) {
    TrainMetrics line;
    line.step = step;
    line.tokens = step * 100;
    line.loss = 5.0 - static_cast<double>(step) / static_cast<double>(steps);
    line.grad_norm = step == 7 ? 99 : 1;
    line.tokens_per_second = 50;
    line.step_seconds = 3.6;
    line.data.emplace().wait_seconds = step == 3 ? 0.5 : 0;
    line.krr = KrrMetrics{step == 9 ? 1e-9 : 0.5, 2, 1e-10};
    run.metrics.train.push_back(line);
  }
  return run;
}

TEST(Report, HoldsEveryStepOfAShortRun) {
  const json run = DataOf(ReportHtml({RunOf(20)}))["runs"][0];
  EXPECT_EQ(run["steps_per_point"], 1);
  ASSERT_EQ(run["train"]["step"].size(), 20u);
  EXPECT_EQ(run["train"]["step"][4], 5);
  EXPECT_EQ(run["train"]["tokens"][4], 500);
  EXPECT_NEAR(run["train"]["hours"][9].get<double>(), 0.01, 1e-9);
  EXPECT_NEAR(run["train"]["loss"][19].get<double>(), 4.0, 1e-9);
  EXPECT_TRUE(run["train"]["mfu"][0].is_null());
  EXPECT_EQ(run["summary"]["mixer"], "cubit share");
  EXPECT_EQ(run["summary"]["steps"], 20);
  EXPECT_EQ(run["summary"]["tokens_per_second"], 50);
}

TEST(Report, ThinsALongRunAndKeepsItsExtremes) {
  const json run = DataOf(ReportHtml({RunOf(100000)}))["runs"][0];
  const json& train = run["train"];
  EXPECT_LE(train["step"].size(), 1200u);
  EXPECT_EQ(run["steps_per_point"], 84);
  EXPECT_EQ(train["step"].back(), 100000);
  EXPECT_EQ(train["grad_norm"][0], 99) << "the largest of its steps";
  EXPECT_EQ(train["grad_norm"][1], 1);
  EXPECT_EQ(train["wait_seconds"][0], 0.5);
  EXPECT_EQ(train["min_diagonal"][0], 1e-9) << "the smallest of its steps";
  // The mean of steps 1 to 84 of a line that falls by 1e-5 a step.
  EXPECT_NEAR(train["loss"][0].get<double>(), 5.0 - 42.5e-5, 1e-5);
}

TEST(Report, NumbersThatAreNotFiniteAreGaps) {
  ReportRun run = RunOf(3);
  run.metrics.train[1].loss = NAN;
  run.metrics.train[2].grad_norm = INFINITY;
  const json part = DataOf(ReportHtml({run}))["runs"][0];
  EXPECT_TRUE(part["train"]["loss"][1].is_null());
  EXPECT_TRUE(part["train"]["grad_norm"][2].is_null());
}

TEST(Report, PlacesValidationAndEvaluationOnEveryAxis) {
  ReportRun run = RunOf(10);
  for (int64_t step : {0, 5, 10}) {
    ValidationMetrics line;
    line.step = step;
    line.loss = step == 5 ? 2.0 : 3.0;
    line.loss_by_position = {{"0-127", 4.0}, {"128-255", 2.5}};
    run.metrics.validation.push_back(line);
  }
  EventMetrics evaluation;
  evaluation.event = "evaluation";
  evaluation.step = 10;
  evaluation.fields = {{"piqa.acc", 0.5}, {"note", std::string("x")}};
  run.metrics.events = {evaluation};
  const json part = DataOf(ReportHtml({run}))["runs"][0];
  EXPECT_EQ(part["validation"]["step"], json({0, 5, 10}));
  EXPECT_EQ(part["validation"]["tokens"], json({0, 500, 1000}));
  EXPECT_EQ(part["summary"]["validation_loss"], 2);
  EXPECT_EQ(part["summary"]["validation_step"], 5);
  EXPECT_EQ(part["positions"],
            json::parse(R"([["0-127", 4], ["128-255", 2.5]])"));
  EXPECT_EQ(part["evaluation"].size(), 1u);
  EXPECT_EQ(part["evaluation"]["piqa.acc"]["value"], json({0.5}));
  EXPECT_EQ(part["evaluation"]["piqa.acc"]["tokens"], json({1000}));
  EXPECT_EQ(part["events"][0]["text"], "piqa.acc: 0.5, note: x");
}

TEST(Report, TextOfARunCannotLeaveItsElement) {
  ReportRun run = RunOf(1);
  const std::string hostile =
      "</script><script>alert(1)</script><!-- @DATA@ \xff\xfe";
  run.name = hostile;
  EventMetrics sample;
  sample.event = "sample";
  sample.fields = {{"text", hostile}};
  run.metrics.events = {sample};
  const std::string page = ReportHtml({run});
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
  EXPECT_EQ(page.find("<!-- @DATA"), std::string::npos);
  const json part = DataOf(page)["runs"][0];
  EXPECT_EQ(part["name"].get<std::string>().substr(0, 9), "</script>");
}

TEST(Report, PageNeedsNoNetwork) {
  const std::string page = ReportHtml({RunOf(2)});
  for (const char* word : {"src=", "href=", "@import", "url(", "fetch(",
                           "XMLHttpRequest", "https://"}) {
    EXPECT_EQ(page.find(word), std::string::npos) << word;
  }
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
  EXPECT_NE(page.find("prefers-color-scheme: dark"), std::string::npos);
}

TEST(LoadReportRun, NamesWhatIsMissing) {
  const std::string folder = NewFolder();
  auto run = LoadReportRun(folder);
  EXPECT_EQ(run.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(run.status().message().find(folder), std::string::npos);
  WriteText(folder + "/metrics.jsonl", "");
  run = LoadReportRun(folder);
  EXPECT_FALSE(run.ok());
  EXPECT_NE(run.status().message().find("config.textproto"), std::string::npos)
      << run.status();
  WriteText(folder + "/config.textproto", "model { num_layers: 3 }");
  run = LoadReportRun(folder + "//");
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->name, folder.substr(folder.rfind('/') + 1));
  // A run that has just begun is a page too.
  const json part = DataOf(ReportHtml({*run}))["runs"][0];
  EXPECT_TRUE(part["summary"]["train_loss"].is_null());
  EXPECT_TRUE(part["train"]["step"].empty());
}

}  // namespace
}  // namespace cubit
