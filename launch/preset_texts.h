// SPDX-License-Identifier: Apache-2.0
//
// The files of launch/configs, built into the program, which so runs from
// anywhere. The table is generated (BUILD.bazel); presets.h uses it.

#ifndef CUBIT_LAUNCH_PRESET_TEXTS_H_
#define CUBIT_LAUNCH_PRESET_TEXTS_H_

#include <vector>

namespace cubit {

struct PresetText {
  const char* name;  // "size_125m", without ".textproto"
  const char* text;
};

std::vector<PresetText> PresetTexts();

}  // namespace cubit

#endif  // CUBIT_LAUNCH_PRESET_TEXTS_H_
