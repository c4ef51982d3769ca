// SPDX-License-Identifier: Apache-2.0

#include "launch/checkpoint_model.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "launch/config.h"
#include "launch/config_checks.h"
#include "launch/model_setup.h"
#include "launch/train_state.h"
#include "runtime/device.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Folders of steps that `path` may mean, best first.
absl::StatusOr<std::vector<std::string>> Candidates(const std::string& path) {
  FileSystem& files = FileSystem::Posix();
  if (!files.Exists(path)) {
    return absl::NotFoundError(
        absl::StrCat(path,
                     ": does not exist; --checkpoint takes a run's folder, its "
                     "checkpoints folder, or one step of it"));
  }
  if (ReadCheckpointInfo(files, path).ok()) return std::vector{path};
  for (const std::string& folder : {JoinPath(path, "checkpoints"), path}) {
    const std::vector<int64_t> steps = ListCheckpoints(files, folder);
    std::vector<std::string> folders;
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
      folders.push_back(CheckpointFolder(folder, *step));
    }
    if (!folders.empty()) return folders;
  }
  return absl::NotFoundError(
      absl::StrCat(path, ": holds no checkpoint (step_NNNNNNNN folders)"));
}

absl::StatusOr<CheckpointModel> LoadStep(const std::string& folder) {
  FileSystem& files = FileSystem::Posix();
  CheckpointModel loaded;
  CUBIT_ASSIGN_OR_RETURN(loaded.info, ReadCheckpointInfo(files, folder));
  CUBIT_ASSIGN_OR_RETURN(loaded.config,
                         LoadConfigFile(JoinPath(folder, "config.textproto")));
  CUBIT_ASSIGN_OR_RETURN(loaded.tokenizer,
                         LoadTokenizer(JoinPath(folder, "tokenizer")));
  // The masters are fp32, so a device that has no bf16 reads them all the same.
  if (!SettlePrecision(DeviceKind(), &loaded.config).ok()) {
    loaded.config.clear_precision();
    CUBIT_RETURN_IF_ERROR(SettlePrecision(DeviceKind(), &loaded.config));
  }
  CUBIT_ASSIGN_OR_RETURN(
      const ModelConfig model_config,
      MakeModelConfig(loaded.config, loaded.tokenizer->vocab_size()));
  CUBIT_ASSIGN_OR_RETURN(loaded.model, LanguageModel::Create(model_config));
  CUBIT_RETURN_IF_ERROR(loaded.model->parameters().Allocate(
      /*with_gradients=*/false, model_config.activation_dtype));
  CUBIT_RETURN_IF_ERROR(
      LoadCheckpoint(files, folder, ModelTensors(*loaded.model)));
  Stream stream;
  loaded.model->parameters().RefreshCompute(stream);
  return loaded;
}

}  // namespace

absl::StatusOr<CheckpointModel> LoadCheckpointModel(const std::string& path) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> folders,
                         Candidates(path));
  absl::Status first_error;
  for (const std::string& folder : folders) {
    absl::StatusOr<CheckpointModel> loaded = LoadStep(folder);
    if (loaded.ok() || !absl::IsDataLoss(loaded.status())) return loaded;
    LogWarning(
        absl::StrCat(loaded.status().message(), "; trying the step before"));
    if (first_error.ok()) first_error = loaded.status();
  }
  return first_error;
}

}  // namespace cubit
