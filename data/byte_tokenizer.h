// SPDX-License-Identifier: Apache-2.0
//
// The tokenizer without a vocabulary: a byte is its own id, 256 the end of
// text.

#ifndef CUBIT_DATA_BYTE_TOKENIZER_H_
#define CUBIT_DATA_BYTE_TOKENIZER_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "data/tokenizer.h"

namespace cubit {

// Name of the small JSON file by which a saved byte tokenizer is known.
extern const char kByteTokenizerFile[];

std::unique_ptr<Tokenizer> MakeByteTokenizer();

// Whether `contents`, a kByteTokenizerFile, is one that this version reads.
absl::Status CheckByteTokenizerFile(absl::string_view contents);

}  // namespace cubit

#endif  // CUBIT_DATA_BYTE_TOKENIZER_H_
