// SPDX-License-Identifier: Apache-2.0
//
// Whether a configuration makes sense, by itself and beside the one that a
// checkpoint was saved with.

#ifndef CUBIT_LAUNCH_CONFIG_CHECKS_H_
#define CUBIT_LAUNCH_CONFIG_CHECKS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "launch/run.pb.h"

namespace cubit {

// Ranges, and divisibility on any number of ranks; parallel_plan.h checks the
// layout on those that there are. The error (InvalidArgument) lists everything
// that is wrong, a line each, with the numbers and the nearest values that
// work.
absl::Status ValidateConfig(const RunConfig& config);

// Settles precision.compute=auto for a device ("cpu" or "cuda"), and refuses
// precisions that it does not have (InvalidArgument).
absl::Status SettlePrecision(absl::string_view device_kind, RunConfig* config);

// What a difference means to a run that continues.
enum class ChangeKind {
  kFree,       // layout, logging, how often to save: nothing of the result
  kNeedsFlag,  // schedule, optimizer, data: another experiment from here on
  kRefused     // the model: its tensors have other shapes or meanings
};

struct ConfigChange {
  std::string key;
  std::string saved;
  std::string requested;
  ChangeKind kind = ChangeKind::kFree;
};

// Keys whose resolved values differ, in the order of run.proto.
std::vector<ConfigChange> CompareConfigs(const RunConfig& saved,
                                         const RunConfig& requested);

// OK if a run saved with `saved` may continue with `requested`; else
// FailedPrecondition with a line "key: saved -> requested" for each key in the
// way. Changes that need a flag pass if `changes_allowed`.
absl::Status CheckResume(const RunConfig& saved, const RunConfig& requested,
                         bool changes_allowed);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_CONFIG_CHECKS_H_
