// SPDX-License-Identifier: Apache-2.0
//
// A made-up BPE vocabulary in every file format: the 256 bytes, a few merges
// and the end of text.

#ifndef CUBIT_TESTS_DATA_SMALL_VOCABULARY_H_
#define CUBIT_TESTS_DATA_SMALL_VOCABULARY_H_

#include <string>

namespace cubit {

struct SmallVocabulary {
  std::string encoder_json;
  std::string vocab_bpe;
  std::string tokenizer_json;
  std::string tiktoken;
};

SmallVocabulary MakeSmallVocabulary();

// Ids of it: a byte is its own id, then the tokens below, then the end of text.
constexpr int kThId = 256;        // "th"
constexpr int kTheId = 257;       // "the"
constexpr int kSpaceTheId = 258;  // " the"
constexpr int kInId = 259;        // "in"
constexpr int kIngId = 260;       // "ing"
constexpr int kSpacesId = 261;    // two spaces
constexpr int kEAcuteId = 262;    // U+00E9
constexpr int kAaId = 263;        // "aa"
constexpr int kAaaaId = 264;      // "aaaa"
constexpr int kSmallEotId = 265;

}  // namespace cubit

#endif  // CUBIT_TESTS_DATA_SMALL_VOCABULARY_H_
