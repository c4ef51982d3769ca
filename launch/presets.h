// SPDX-License-Identifier: Apache-2.0
//
// Named configurations, built into the program: `tiny`, and
// <mixer>_<size>[_<recipe>] as in cubit_350m_table. Each is merged from the
// parts in launch/configs: base, size_*, mixer_*, recipe_*.

#ifndef CUBIT_LAUNCH_PRESETS_H_
#define CUBIT_LAUNCH_PRESETS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "launch/run.pb.h"

namespace cubit {

// Unknown names are errors (NotFound) that name the nearest preset.
absl::StatusOr<RunConfig> LoadPreset(absl::string_view name);

// All names, `tiny` first, then by mixer, size and recipe.
std::vector<std::string> ListPresets();

}  // namespace cubit

#endif  // CUBIT_LAUNCH_PRESETS_H_
