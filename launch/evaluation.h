// SPDX-License-Identifier: Apache-2.0
//
// Downstream evaluation of a model, one task at a time: read and encode first
// (on the host, nothing of the model is needed), then score.

#ifndef CUBIT_LAUNCH_EVALUATION_H_
#define CUBIT_LAUNCH_EVALUATION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "data/tokenizer.h"
#include "launch/evaluation_scoring.h"
#include "launch/evaluation_tasks.h"
#include "models/sequence_scorer.h"

namespace cubit {

struct ItemSelection {
  int64_t count = 0;    // 0: all
  bool spread = false;  // evenly over the file; else its first items
};

struct PreparedTask {
  const EvaluationTask* task = nullptr;
  std::string file;
  std::vector<EvaluationItem> items;
  std::vector<ScoringRequest> requests;
};

// A task's name and, after "=", its file; without one, the file in `folder`.
struct TaskSource {
  const EvaluationTask* task = nullptr;
  std::string file;
};
absl::StatusOr<TaskSource> ParseTaskSource(absl::string_view text,
                                           const std::string& folder);

// All tasks that have a file in `folder`. Error: none has.
absl::StatusOr<std::vector<TaskSource>> AllTaskSources(
    const std::string& folder);

// `max_length`: input tokens that the model may see.
absl::StatusOr<PreparedTask> PrepareTask(const TaskSource& source,
                                         const ItemSelection& selection,
                                         const Tokenizer& tokenizer,
                                         int64_t max_length);

struct ScoredTask {
  const EvaluationTask* task = nullptr;
  std::string file;
  TaskResult result;
  ScoringWork work;
  double seconds = 0;
};

absl::StatusOr<ScoredTask> ScoreTask(const PreparedTask& prepared,
                                     int64_t batch_tokens,
                                     SequenceScorer* scorer);

// Means over tasks, each task counting once.
struct EvaluationAverage {
  double acc = 0;
  // acc_norm where the task has it, acc where not.
  double acc_norm = 0;
};
EvaluationAverage AverageOf(absl::Span<const ScoredTask> tasks);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_EVALUATION_H_
