// SPDX-License-Identifier: Apache-2.0
//
// The names of a step's folder while it is written, replaced and removed.
// Internal to checkpoint.h.

#ifndef CUBIT_PARALLEL_CHECKPOINT_FOLDERS_H_
#define CUBIT_PARALLEL_CHECKPOINT_FOLDERS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "runtime/file_system.h"

namespace cubit {

constexpr absl::string_view kTemporary = ".tmp";      // not yet committed
constexpr absl::string_view kDeleting = ".deleting";  // no longer
// A committed step that gives way to a new one of the same number; it counts
// until the new one stands.
constexpr absl::string_view kReplaced = ".replaced";

// "step_00001000", and the step of this name; -1 for any other.
std::string StepName(int64_t step);
int64_t StepOf(absl::string_view name);

// Ends a replacement that was interrupted: the replaced step goes if the new
// one stands, and comes back if it does not.
absl::Status FinishReplacement(FileSystem& files, const std::string& folder);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_CHECKPOINT_FOLDERS_H_
