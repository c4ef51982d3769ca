// SPDX-License-Identifier: Apache-2.0
//
// The text of launch/huggingface/modeling_cubit.py, as part of the program.

#ifndef CUBIT_LAUNCH_MODELING_FILE_H_
#define CUBIT_LAUNCH_MODELING_FILE_H_

#include "absl/strings/string_view.h"

namespace cubit {

absl::string_view ModelingFileText();

}  // namespace cubit

#endif  // CUBIT_LAUNCH_MODELING_FILE_H_
