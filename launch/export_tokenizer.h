// SPDX-License-Identifier: Apache-2.0
//
// A tokenizer as transformers wants it.

#ifndef CUBIT_LAUNCH_EXPORT_TOKENIZER_H_
#define CUBIT_LAUNCH_EXPORT_TOKENIZER_H_

#include <vector>

#include "absl/status/statusor.h"

#include "data/tokenizer.h"

namespace cubit {

// tokenizer.json and tokenizer_config.json that give the same ids to every
// text (special tokens in it are characters), and the tokenizer's own files
// where they are others, so that the folder is also one for LoadTokenizer.
// `max_length` is what transformers warns above.
absl::StatusOr<std::vector<TokenizerFile>> HuggingFaceTokenizer(
    const Tokenizer& tokenizer, int64_t max_length);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_EXPORT_TOKENIZER_H_
