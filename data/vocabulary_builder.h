// SPDX-License-Identifier: Apache-2.0
//
// Puts a BpeVocabulary together from tokens and merges as vocabulary files
// spell them (byte_level.h), in any order.

#ifndef CUBIT_DATA_VOCABULARY_BUILDER_H_
#define CUBIT_DATA_VOCABULARY_BUILDER_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "data/bpe_vocabulary.h"

namespace cubit {

// `spelling` in quotation marks, printable and of bounded length: for messages.
std::string QuotedToken(absl::string_view spelling);

class VocabularyBuilder {
 public:
  // Errors are InvalidArgumentErrors: a token with two ids.
  absl::Status AddToken(absl::string_view spelling, int64_t id);
  // A special token, which spells itself; it may be an ordinary one so far.
  absl::Status AddSpecial(absl::string_view name, int64_t id);

  void AddMerge(absl::string_view left, absl::string_view right);
  // "left right" with one space; an error otherwise.
  absl::Status AddMergeLine(absl::string_view line);

  // Needs ids 0, 1, ... without holes, spellings of bytes, and every token that
  // a merge names or makes. CheckBpeVocabulary must do the rest.
  absl::StatusOr<BpeVocabulary> Finish() const;

 private:
  struct Entry {
    int64_t id;
    bool special;
  };

  absl::Status Insert(absl::string_view spelling, int64_t id, bool special);
  absl::Status FillTokens(BpeVocabulary* vocabulary) const;
  absl::StatusOr<int32_t> IdOf(const std::string& spelling) const;

  absl::flat_hash_map<std::string, Entry> entries_;
  std::vector<std::pair<std::string, std::string>> merges_;
};

}  // namespace cubit

#endif  // CUBIT_DATA_VOCABULARY_BUILDER_H_
