// SPDX-License-Identifier: Apache-2.0

#include "launch/evaluation.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {

absl::StatusOr<TaskSource> ParseTaskSource(absl::string_view text,
                                           const std::string& folder) {
  const size_t equals = text.find('=');
  TaskSource source;
  CUBIT_ASSIGN_OR_RETURN(source.task,
                         FindEvaluationTask(text.substr(0, equals)));
  if (equals != absl::string_view::npos) {
    source.file = std::string(text.substr(equals + 1));
    return source;
  }
  if (folder.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "task ", text, " needs a folder with its file, or ", text, "=FILE"));
  }
  CUBIT_ASSIGN_OR_RETURN(source.file, FindTaskFile(*source.task, folder));
  return source;
}

absl::StatusOr<std::vector<TaskSource>> AllTaskSources(
    const std::string& folder) {
  std::vector<TaskSource> sources;
  for (const EvaluationTask& task : EvaluationTasks()) {
    absl::StatusOr<std::string> file = FindTaskFile(task, folder);
    if (file.ok()) sources.push_back({&task, *std::move(file)});
  }
  if (!sources.empty()) return sources;
  return absl::NotFoundError(
      absl::StrCat(folder,
                   ": has no file of any task; docs/evaluation.md says how "
                   "they are named"));
}

absl::StatusOr<PreparedTask> PrepareTask(const TaskSource& source,
                                         const ItemSelection& selection,
                                         const Tokenizer& tokenizer,
                                         int64_t max_length) {
  PreparedTask prepared;
  prepared.task = source.task;
  prepared.file = source.file;
  const int64_t limit = selection.spread ? 0 : selection.count;
  CUBIT_ASSIGN_OR_RETURN(prepared.items,
                         ReadTaskItems(*source.task, source.file, limit));
  if (selection.spread && selection.count > 0) {
    prepared.items = SpreadItems(std::move(prepared.items), selection.count);
  }
  absl::StatusOr<std::vector<ScoringRequest>> requests =
      EncodeItems(tokenizer, prepared.items, max_length);
  if (!requests.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.file, ": ", requests.status().message()));
  }
  prepared.requests = *std::move(requests);
  return prepared;
}

absl::StatusOr<ScoredTask> ScoreTask(const PreparedTask& prepared,
                                     int64_t batch_tokens,
                                     SequenceScorer* scorer) {
  const absl::Time start = absl::Now();
  const ScoringPlan plan(prepared.requests, batch_tokens);
  ScoredTask scored;
  scored.task = prepared.task;
  scored.file = prepared.file;
  scored.work = plan.work();
  CUBIT_ASSIGN_OR_RETURN(const std::vector<double> log_likelihoods,
                         LogLikelihoods(plan, prepared.requests.size(),
                                        prepared.task->name, scorer));
  CUBIT_ASSIGN_OR_RETURN(scored.result,
                         JudgeItems(prepared.items, log_likelihoods));
  scored.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  return scored;
}

EvaluationAverage AverageOf(absl::Span<const ScoredTask> tasks) {
  CUBIT_CHECK(!tasks.empty());
  EvaluationAverage average;
  for (const ScoredTask& scored : tasks) {
    average.acc += scored.result.acc.mean;
    average.acc_norm += scored.task->normalised ? scored.result.acc_norm.mean
                                                : scored.result.acc.mean;
  }
  average.acc /= static_cast<double>(tasks.size());
  average.acc_norm /= static_cast<double>(tasks.size());
  return average;
}

}  // namespace cubit
