// SPDX-License-Identifier: Apache-2.0
//
// Which files are text, by their names alone.

#ifndef CUBIT_DATA_TEXT_FORMAT_H_
#define CUBIT_DATA_TEXT_FORMAT_H_

#include "absl/strings/string_view.h"

namespace cubit {

enum class TextFormat { kNone, kPlain, kJsonLines };

// Format of a file by the suffix of its name, in any case, after that of its
// compression.
TextFormat TextFormatOf(absl::string_view path);

// The formats in words, for messages.
extern const char kTextFormats[];

}  // namespace cubit

#endif  // CUBIT_DATA_TEXT_FORMAT_H_
