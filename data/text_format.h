// SPDX-License-Identifier: Apache-2.0
//
// What a file holds, by its name alone.

#ifndef CUBIT_DATA_TEXT_FORMAT_H_
#define CUBIT_DATA_TEXT_FORMAT_H_

#include "absl/strings/string_view.h"

namespace cubit {

enum class TextFormat {
  kNone,
  kPlain,
  kJsonLines,
  kParquet,
  kLlmc,      // token ids of llm.c, .bin
  kMegatron,  // token ids of Megatron, .idx with a .bin beside it
};

// Format of a file by the suffix of its name, in any case, after that of its
// compression (text alone may be compressed as a whole).
TextFormat TextFormatOf(absl::string_view path);

// Whether files of the format hold token ids instead of text.
bool HoldsTokens(TextFormat format);

// The formats in words, for messages.
extern const char kTextFormats[];

}  // namespace cubit

#endif  // CUBIT_DATA_TEXT_FORMAT_H_
