// SPDX-License-Identifier: Apache-2.0
//
// Prompts from a file.

#ifndef CUBIT_LAUNCH_PROMPTS_H_
#define CUBIT_LAUNCH_PROMPTS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace cubit {

// The prompts of `path`, plain or compressed: the field "prompt" of every row
// of a .jsonl file, else every line that is not empty. Errors name the file and
// the line; a file without a prompt is one.
absl::StatusOr<std::vector<std::string>> ReadPrompts(const std::string& path);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_PROMPTS_H_
