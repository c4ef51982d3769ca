// SPDX-License-Identifier: Apache-2.0
//
// A model for reading: weights, configuration and tokenizer of a checkpoint.

#ifndef CUBIT_LAUNCH_CHECKPOINT_MODEL_H_
#define CUBIT_LAUNCH_CHECKPOINT_MODEL_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "data/tokenizer.h"
#include "launch/run.pb.h"
#include "models/language_model.h"
#include "parallel/checkpoint.h"

namespace cubit {

struct CheckpointModel {
  RunConfig config;
  CheckpointInfo info;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<LanguageModel> model;  // no gradients
};

// Loads from `path`: a step's folder, a folder of steps, or a run's folder (its
// newest step that is whole).
absl::StatusOr<CheckpointModel> LoadCheckpointModel(const std::string& path);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_CHECKPOINT_MODEL_H_
