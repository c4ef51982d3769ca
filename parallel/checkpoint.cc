// SPDX-License-Identifier: Apache-2.0

#include "parallel/checkpoint.h"

#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

#include "parallel/checkpoint_folders.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr absl::string_view kStepPrefix = "step_";

absl::Status RemoveStep(FileSystem& files, const std::string& folder) {
  const std::string deleting = absl::StrCat(folder, kDeleting);
  CUBIT_RETURN_IF_ERROR(files.Remove(deleting));
  CUBIT_RETURN_IF_ERROR(files.Rename(folder, deleting));
  return files.Remove(deleting);
}

// Removes what interrupted saves and removals left behind.
absl::Status RemoveLeftovers(FileSystem& files,
                             const std::string& checkpoints) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         files.List(checkpoints));
  for (absl::string_view name : names) {
    absl::string_view step = name;
    if (absl::ConsumeSuffix(&step, kReplaced) && StepOf(step) >= 0) {
      CUBIT_RETURN_IF_ERROR(
          FinishReplacement(files, JoinPath(checkpoints, step)));
      continue;
    }
    const bool leftover = absl::ConsumeSuffix(&step, kTemporary) ||
                          absl::ConsumeSuffix(&step, kDeleting);
    if (leftover && StepOf(step) >= 0) {
      CUBIT_RETURN_IF_ERROR(files.Remove(JoinPath(checkpoints, name)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string StepName(int64_t step) {
  return absl::StrFormat("%s%08d", kStepPrefix, step);
}

int64_t StepOf(absl::string_view name) {
  int64_t step = -1;
  absl::string_view number = name;
  if (!absl::ConsumePrefix(&number, kStepPrefix) ||
      !absl::SimpleAtoi(number, &step) || step < 0 || StepName(step) != name) {
    return -1;
  }
  return step;
}

absl::Status FinishReplacement(FileSystem& files, const std::string& folder) {
  const std::string replaced = absl::StrCat(folder, kReplaced);
  if (!files.Exists(replaced)) return absl::OkStatus();
  return files.Exists(folder) ? files.Remove(replaced)
                              : files.Rename(replaced, folder);
}

std::string CheckpointFolder(const std::string& checkpoints, int64_t step) {
  return JoinPath(checkpoints, StepName(step));
}

std::vector<int64_t> ListCheckpoints(FileSystem& files,
                                     const std::string& checkpoints) {
  const auto names = files.List(checkpoints);
  if (!names.ok()) return {};
  std::set<int64_t> steps;
  for (absl::string_view name : *names) {
    absl::ConsumeSuffix(&name, kReplaced);
    const int64_t step = StepOf(name);
    if (step >= 0) steps.insert(step);
  }
  return std::vector<int64_t>(steps.begin(), steps.end());
}

absl::Status PruneCheckpoints(FileSystem& files, const std::string& checkpoints,
                              int64_t keep_last, int64_t keep_every) {
  CUBIT_CHECK_GE(keep_last, 1);
  CUBIT_CHECK_GE(keep_every, 0);
  if (!files.Exists(checkpoints)) return absl::OkStatus();
  CUBIT_RETURN_IF_ERROR(RemoveLeftovers(files, checkpoints));
  const std::vector<int64_t> steps = ListCheckpoints(files, checkpoints);
  const int64_t count = static_cast<int64_t>(steps.size());
  for (int64_t i = 0; i < count - keep_last; ++i) {
    const int64_t step = steps[static_cast<size_t>(i)];
    if (keep_every > 0 && step % keep_every == 0) continue;
    CUBIT_RETURN_IF_ERROR(
        RemoveStep(files, CheckpointFolder(checkpoints, step)));
  }
  return absl::OkStatus();
}

}  // namespace cubit
