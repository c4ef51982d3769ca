// SPDX-License-Identifier: Apache-2.0
//
// What defines a byte-level BPE: the bytes of every token and the merges in
// order of rank. Every file format is read into this form, so that one
// vocabulary gives one digest.

#ifndef CUBIT_DATA_BPE_VOCABULARY_H_
#define CUBIT_DATA_BPE_VOCABULARY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace cubit {

// Token `result` replaces `left` followed by `right`.
struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t result;
};

struct BpeVocabulary {
  struct Token {
    std::string bytes;     // what it decodes to; a special token's name
    bool special = false;  // never comes out of text, decodes to nothing
  };
  std::vector<Token> tokens;     // by id
  std::vector<BpeMerge> merges;  // earlier ones are applied first
  int32_t eot_id = -1;
};

// The name that every vocabulary must give its end of text.
extern const char kEndOfText[];  // "<|endoftext|>"

// What the tokenizer relies on: all 256 single bytes; no two ordinary tokens
// alike; every longer ordinary token made by a merge; merges of ordinary tokens
// whose bytes add up, no pair twice; a special token kEndOfText, at eot_id.
// InvalidArgumentError says which token or merge fails, without a file name.
absl::Status CheckBpeVocabulary(const BpeVocabulary& vocabulary);

// SHA-256 of the text "cubit-bpe-1\n", then for every id in order u32 length,
// u8 special and the bytes, then the u32 id of the end of text, then for every
// merge in order u32 left, u32 right, u32 result; integers little-endian, both
// lists preceded by their u32 length.
std::string BpeVocabularySha256(const BpeVocabulary& vocabulary);

}  // namespace cubit

#endif  // CUBIT_DATA_BPE_VOCABULARY_H_
