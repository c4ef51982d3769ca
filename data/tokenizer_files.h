// SPDX-License-Identifier: Apache-2.0
//
// OpenAI's file formats of byte-level BPE vocabularies (tokenizer_json.h has
// Hugging Face's). Every parser takes the
// contents and returns a vocabulary that still needs CheckBpeVocabulary; errors
// are InvalidArgumentErrors without a file name. Memory and time are bounded by
// the size of the contents, whatever they claim.

#ifndef CUBIT_DATA_TOKENIZER_FILES_H_
#define CUBIT_DATA_TOKENIZER_FILES_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "data/bpe_vocabulary.h"

namespace cubit {

// OpenAI's pair: a JSON object from token to id, and lines "left right" after
// an optional "#version" line (Hugging Face's vocab.json and merges.txt).
absl::StatusOr<BpeVocabulary> ParseEncoderJson(absl::string_view encoder_json,
                                               absl::string_view merges);

// Lines "base64 rank" with ranks 0, 1, ... in any order. The format has no
// merges; each is the pair of tokens that the merges of lower rank make of the
// token. It has no special tokens either: kEndOfText gets the next id.
absl::StatusOr<BpeVocabulary> ParseTiktoken(absl::string_view contents);

}  // namespace cubit

#endif  // CUBIT_DATA_TOKENIZER_FILES_H_
