// SPDX-License-Identifier: Apache-2.0
//
// GPT-2's byte-level BPE with any vocabulary of that kind.

#ifndef CUBIT_DATA_BPE_TOKENIZER_H_
#define CUBIT_DATA_BPE_TOKENIZER_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"

#include "data/bpe_vocabulary.h"
#include "data/tokenizer.h"

namespace cubit {

// Named "gpt2" if `vocabulary` is OpenAI's, else "bpe". `files` are what it was
// read from. The errors are those of CheckBpeVocabulary. Encode takes texts of
// fewer than 2^32 - 1 bytes.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeBpeTokenizer(
    const BpeVocabulary& vocabulary, std::vector<TokenizerFile> files);

}  // namespace cubit

#endif  // CUBIT_DATA_BPE_TOKENIZER_H_
