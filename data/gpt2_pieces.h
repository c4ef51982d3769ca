// SPDX-License-Identifier: Apache-2.0
//
// GPT-2's cut of text into pieces, none of which a merge crosses: contractions,
// words, numbers and other characters, each with one space before it at most,
// and white space.

#ifndef CUBIT_DATA_GPT2_PIECES_H_
#define CUBIT_DATA_GPT2_PIECES_H_

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace cubit {

// Calls `piece` with the consecutive pieces of `text`, which together are
// `text`. The cut is that of the expression
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// on every stretch of valid UTF-8 as if it stood alone, with \s the White_Space
// property; letters and numbers are those of PCRE2's Unicode version. A run of
// bytes that are not UTF-8 is one piece. O(text) time. Thread-safe.
void ForEachGpt2Piece(absl::string_view text,
                      absl::FunctionRef<void(absl::string_view)> piece);

}  // namespace cubit

#endif  // CUBIT_DATA_GPT2_PIECES_H_
