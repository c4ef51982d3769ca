// SPDX-License-Identifier: Apache-2.0
//
// What an evaluation found: a table for people, JSON for programs, and a line
// for every item.

#ifndef CUBIT_LAUNCH_EVALUATION_REPORT_H_
#define CUBIT_LAUNCH_EVALUATION_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/optional.h"

#include "launch/evaluation.h"
#include "launch/validation.h"

namespace cubit {

struct EvaluationReport {
  std::string model;  // folder of the checkpoint, or what stands for it
  int64_t step = 0;
  int64_t tokens = 0;  // trained on
  std::vector<ScoredTask> tasks;
  absl::optional<ValidationResult> validation;
};

// A row for each task, in percent with standard errors; the average; the
// validation loss.
std::string ReportTable(const EvaluationReport& report);

// {"model", "step", "tokens", "results": {TASK: {"acc", "acc_stderr", ...}},
//  "average": {"acc", "acc_norm", "num_tasks"}, "validation": {...}}; shares,
// not percent. A standard error of one item is null.
std::string ReportJson(const EvaluationReport& report);

// One JSON object a line for every item of `prepared`: task, index, gold,
// predictions, log-likelihoods, and the texts and token counts that were
// scored.
std::string PredictionLines(const PreparedTask& prepared,
                            const TaskResult& result);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_EVALUATION_REPORT_H_
