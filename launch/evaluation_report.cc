// SPDX-License-Identifier: Apache-2.0

#include "launch/evaluation_report.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace cubit {
namespace {

using Json = nlohmann::ordered_json;

std::string Percent(const Accuracy& accuracy) {
  return absl::StrFormat("%6.2f +- %.2f", 100 * accuracy.mean,
                         100 * accuracy.standard_error);
}

// NaN has no form in JSON.
Json Number(double value) {
  return std::isfinite(value) ? Json(value) : Json();
}

void PutAccuracy(const std::string& name, const Accuracy& accuracy,
                 Json* json) {
  (*json)[name] = accuracy.mean;
  (*json)[name + "_stderr"] = Number(accuracy.standard_error);
}

Json TaskJson(const ScoredTask& scored) {
  Json json;
  PutAccuracy("acc", scored.result.acc, &json);
  if (scored.task->normalised) {
    PutAccuracy("acc_norm", scored.result.acc_norm, &json);
    PutAccuracy("acc_bytes", scored.result.acc_bytes, &json);
  }
  json["items"] = scored.result.items.size();
  json["file"] = scored.file;
  json["sequences"] = scored.work.sequences;
  json["tokens"] = scored.work.tokens;
  json["padded_tokens"] = scored.work.padded_tokens;
  json["targets"] = scored.work.targets;
  json["seconds"] = scored.seconds;
  return json;
}

Json ValidationJson(const ValidationResult& validation) {
  Json json;
  json["loss"] = Number(validation.loss);
  json["perplexity"] = Number(std::exp(validation.loss));
  json["tokens"] = validation.tokens;
  Json positions = Json::object();
  for (const auto& [range, loss] : validation.loss_by_position) {
    positions[range] = Number(loss);
  }
  json["loss_by_position"] = positions;
  return json;
}

}  // namespace

std::string ReportTable(const EvaluationReport& report) {
  constexpr char kRow[] = "%-14s %6s  %-16s %-16s\n";
  std::string table;
  if (!report.tasks.empty()) {
    absl::StrAppend(&table,
                    absl::StrFormat(kRow, "task", "items", "acc", "acc_norm"));
    for (const ScoredTask& scored : report.tasks) {
      absl::StrAppend(
          &table,
          absl::StrFormat(
              kRow, scored.task->name, absl::StrCat(scored.result.items.size()),
              Percent(scored.result.acc),
              scored.task->normalised ? Percent(scored.result.acc_norm) : "-"));
    }
    const EvaluationAverage average = AverageOf(report.tasks);
    absl::StrAppend(
        &table,
        absl::StrFormat(kRow, "average", "",
                        absl::StrFormat("%6.2f", 100 * average.acc),
                        absl::StrFormat("%6.2f", 100 * average.acc_norm)));
  }
  if (report.validation.has_value()) {
    absl::StrAppend(&table,
                    absl::StrFormat("validation loss %.4f, perplexity %.2f (%d "
                                    "tokens)\n",
                                    report.validation->loss,
                                    std::exp(report.validation->loss),
                                    report.validation->tokens));
  }
  return table;
}

std::string ReportJson(const EvaluationReport& report) {
  Json json;
  json["model"] = report.model;
  json["step"] = report.step;
  json["tokens"] = report.tokens;
  if (!report.tasks.empty()) {
    Json results = Json::object();
    for (const ScoredTask& scored : report.tasks) {
      results[scored.task->name] = TaskJson(scored);
    }
    json["results"] = results;
    const EvaluationAverage average = AverageOf(report.tasks);
    json["average"] = {{"acc", average.acc},
                       {"acc_norm", average.acc_norm},
                       {"num_tasks", report.tasks.size()}};
  }
  if (report.validation.has_value()) {
    json["validation"] = ValidationJson(*report.validation);
  }
  return json.dump(2) + "\n";
}

std::string PredictionLines(const PreparedTask& prepared,
                            const TaskResult& result) {
  std::string lines;
  size_t request = 0;
  for (size_t i = 0; i < prepared.items.size(); ++i) {
    const EvaluationItem& item = prepared.items[i];
    const ItemResult& judged = result.items[i];
    Json json;
    json["task"] = prepared.task->name;
    json["index"] = i;
    json["gold"] = item.gold;
    json["prediction"] = judged.prediction;
    json["prediction_norm"] = judged.prediction_norm;
    json["prediction_bytes"] = judged.prediction_bytes;
    json["log_likelihoods"] = judged.log_likelihoods;
    for (const EvaluationChoice& choice : item.choices) {
      json["contexts"].push_back(choice.context);
      json["continuations"].push_back(choice.continuation);
      json["target_tokens"].push_back(prepared.requests[request++].num_targets);
    }
    lines += json.dump() + "\n";
  }
  return lines;
}

}  // namespace cubit
