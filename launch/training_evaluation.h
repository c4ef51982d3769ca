// SPDX-License-Identifier: Apache-2.0
//
// Downstream tasks in the training loop. Files are read, cut to a sample and
// encoded before the first step; what is left for the loop is the forward pass
// of that sample on the weights as they stand.

#ifndef CUBIT_LAUNCH_TRAINING_EVALUATION_H_
#define CUBIT_LAUNCH_TRAINING_EVALUATION_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

#include "data/tokenizer.h"
#include "launch/evaluation.h"
#include "launch/metrics.h"
#include "launch/run.pb.h"
#include "models/language_model.h"

namespace cubit {

class TrainingEvaluation {
 public:
  // The tasks of config.evaluation; null if there are none.
  static absl::StatusOr<std::unique_ptr<TrainingEvaluation>> Create(
      const RunConfig& config, const Tokenizer& tokenizer);

  // Scores all tasks, in batches of at most a training micro-batch's tokens.
  // The event "evaluation" has each task's accuracies, their averages, and the
  // seconds it took. Error: no memory beside what training holds.
  absl::StatusOr<EventMetrics> Run(const LanguageModel& model, int64_t step,
                                   Stream& stream) const;

 private:
  TrainingEvaluation() = default;

  std::vector<PreparedTask> tasks_;
  int64_t batch_tokens_ = 0;
};

}  // namespace cubit

#endif  // CUBIT_LAUNCH_TRAINING_EVALUATION_H_
