// SPDX-License-Identifier: Apache-2.0
//
// Downstream tasks: which text is put before a model and which texts it must
// choose among. Each follows the definition of lm-evaluation-harness 0.4
// (docs/evaluation.md has the table), so that scores can be compared with
// published ones.

#ifndef CUBIT_LAUNCH_EVALUATION_TASKS_H_
#define CUBIT_LAUNCH_EVALUATION_TASKS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "launch/json_rows.h"

namespace cubit {

// Scored is the probability of `continuation` after `context`.
struct EvaluationChoice {
  std::string context;
  std::string continuation;  // begins with the space that separates them
  // Length of the choice itself, which acc_norm and acc_bytes divide by.
  int64_t characters = 0;
  int64_t bytes = 0;
};

struct EvaluationItem {
  std::vector<EvaluationChoice> choices;
  int64_t gold = 0;
};

struct EvaluationTask {
  std::string name;  // that of lm-evaluation-harness
  // Files that may hold it, best first, without ".jsonl" and its compression.
  std::vector<std::string> files;
  // Whether acc_norm and acc_bytes are reported besides acc. They divide by
  // the lengths of what is scored, which says nothing where all choices have
  // the same text scored.
  bool normalised = true;
  // The item of a row; problems go to the row.
  EvaluationItem (*item)(JsonRow& row) = nullptr;
};

// Stands for every task that has a file.
constexpr char kAllTasks[] = "all";

// All tasks, in the order of the paper's table.
const std::vector<EvaluationTask>& EvaluationTasks();

// Error: no such task, with the nearest name.
absl::StatusOr<const EvaluationTask*> FindEvaluationTask(
    absl::string_view name);

// The file of `task` in `folder`. Error (NotFound) that lists the names looked
// for.
absl::StatusOr<std::string> FindTaskFile(const EvaluationTask& task,
                                         const std::string& folder);

// The first `limit` items of `path`, 0: all. Errors name file, line and field;
// no item at all is one.
absl::StatusOr<std::vector<EvaluationItem>> ReadTaskItems(
    const EvaluationTask& task, const std::string& path, int64_t limit);

// `count` of the items, spread evenly: files are sorted by source. All if there
// are no more.
std::vector<EvaluationItem> SpreadItems(std::vector<EvaluationItem> items,
                                        int64_t count);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_EVALUATION_TASKS_H_
