// SPDX-License-Identifier: Apache-2.0

#include "launch/training_evaluation.h"

#include <string>
#include <utility>

#include "runtime/status_macros.h"

namespace cubit {
namespace {

absl::StatusOr<std::vector<TaskSource>> SourcesOf(
    const RunConfig::Evaluation& config) {
  if (config.tasks_size() == 1 && config.tasks(0) == kAllTasks) {
    return AllTaskSources(config.task_data());
  }
  std::vector<TaskSource> sources;
  for (const std::string& task : config.tasks()) {
    CUBIT_ASSIGN_OR_RETURN(TaskSource source,
                           ParseTaskSource(task, config.task_data()));
    sources.push_back(std::move(source));
  }
  return sources;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TrainingEvaluation>> TrainingEvaluation::Create(
    const RunConfig& config, const Tokenizer& tokenizer) {
  std::unique_ptr<TrainingEvaluation> evaluation;
  if (config.evaluation().tasks_size() == 0) return evaluation;
  evaluation.reset(new TrainingEvaluation);
  evaluation->batch_tokens_ =
      config.batch().micro_batch_size() * config.model().seq_len();
  CUBIT_ASSIGN_OR_RETURN(const std::vector<TaskSource> sources,
                         SourcesOf(config.evaluation()));
  ItemSelection selection;
  selection.count = config.evaluation().max_items();
  selection.spread = true;
  for (const TaskSource& source : sources) {
    CUBIT_ASSIGN_OR_RETURN(
        PreparedTask task,
        PrepareTask(source, selection, tokenizer, config.model().seq_len()));
    evaluation->tasks_.push_back(std::move(task));
  }
  return evaluation;
}

absl::StatusOr<EventMetrics> TrainingEvaluation::Run(const LanguageModel& model,
                                                     int64_t step,
                                                     Stream& stream) const {
  SequenceScorer scorer(&model, &stream);
  std::vector<ScoredTask> scored;
  double seconds = 0;
  int64_t items = 0;
  EventMetrics event;
  event.event = "evaluation";
  event.step = step;
  for (const PreparedTask& task : tasks_) {
    CUBIT_ASSIGN_OR_RETURN(ScoredTask result,
                           ScoreTask(task, batch_tokens_, &scorer));
    const std::string& name = task.task->name;
    event.fields.emplace_back(name + "_acc", result.result.acc.mean);
    if (task.task->normalised) {
      event.fields.emplace_back(name + "_acc_norm",
                                result.result.acc_norm.mean);
    }
    seconds += result.seconds;
    items += static_cast<int64_t>(result.result.items.size());
    scored.push_back(std::move(result));
  }
  const EvaluationAverage average = AverageOf(scored);
  event.fields.emplace_back("average_acc", average.acc);
  event.fields.emplace_back("average_acc_norm", average.acc_norm);
  event.fields.emplace_back("items", items);
  event.fields.emplace_back("seconds", seconds);
  return event;
}

}  // namespace cubit
