// SPDX-License-Identifier: Apache-2.0
//
// Vocabularies in the format of Hugging Face's tokenizers.

#ifndef CUBIT_DATA_TOKENIZER_JSON_H_
#define CUBIT_DATA_TOKENIZER_JSON_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "data/bpe_vocabulary.h"

namespace cubit {

// Parses a tokenizer.json: model BPE, pre-tokenizer ByteLevel with GPT-2's
// expression and without a prefix space, no normalizer, every added token
// special. Whatever would give other ids than GPT-2's way is an error, not
// ignored. The rest is as in tokenizer_files.h.
absl::StatusOr<BpeVocabulary> ParseTokenizerJson(absl::string_view contents);

}  // namespace cubit

#endif  // CUBIT_DATA_TOKENIZER_JSON_H_
