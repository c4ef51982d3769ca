// SPDX-License-Identifier: Apache-2.0

#include "data/vocabulary_builder.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "data/byte_level.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

absl::Status Error(absl::string_view what) {
  return absl::InvalidArgumentError(what);
}

}  // namespace

std::string QuotedToken(absl::string_view spelling) {
  constexpr size_t kLongest = 60;
  return absl::StrCat("\"",
                      absl::Utf8SafeCHexEscape(spelling.substr(0, kLongest)),
                      spelling.size() > kLongest ? "...\"" : "\"");
}

absl::Status VocabularyBuilder::AddToken(absl::string_view spelling,
                                         int64_t id) {
  return Insert(spelling, id, /*special=*/false);
}

absl::Status VocabularyBuilder::AddSpecial(absl::string_view name, int64_t id) {
  return Insert(name, id, /*special=*/true);
}

void VocabularyBuilder::AddMerge(absl::string_view left,
                                 absl::string_view right) {
  merges_.emplace_back(left, right);
}

absl::Status VocabularyBuilder::AddMergeLine(absl::string_view line) {
  const size_t space = line.find(' ');
  if (space == absl::string_view::npos || space == 0 ||
      space + 1 == line.size() ||
      line.find(' ', space + 1) != absl::string_view::npos) {
    return Error(absl::StrCat("merge ", QuotedToken(line),
                              " is not two tokens with a space between"));
  }
  AddMerge(line.substr(0, space), line.substr(space + 1));
  return absl::OkStatus();
}

absl::StatusOr<BpeVocabulary> VocabularyBuilder::Finish() const {
  BpeVocabulary vocabulary;
  CUBIT_RETURN_IF_ERROR(FillTokens(&vocabulary));
  for (const auto& [left, right] : merges_) {
    BpeMerge merge;
    CUBIT_ASSIGN_OR_RETURN(merge.left, IdOf(left));
    CUBIT_ASSIGN_OR_RETURN(merge.right, IdOf(right));
    CUBIT_ASSIGN_OR_RETURN(merge.result, IdOf(left + right));
    vocabulary.merges.push_back(merge);
  }
  return vocabulary;
}

absl::Status VocabularyBuilder::Insert(absl::string_view spelling, int64_t id,
                                       bool special) {
  const auto [entry, is_new] =
      entries_.try_emplace(spelling, Entry{id, special});
  if (!is_new && entry->second.id != id) {
    return Error(absl::StrCat("token ", QuotedToken(spelling), " has ids ",
                              entry->second.id, " and ", id));
  }
  entry->second.special |= special;
  return absl::OkStatus();
}

absl::Status VocabularyBuilder::FillTokens(BpeVocabulary* vocabulary) const {
  const auto count = static_cast<int64_t>(entries_.size());
  std::vector<const std::string*> spelling_of(entries_.size(), nullptr);
  vocabulary->tokens.resize(entries_.size());
  for (const auto& [spelling, entry] : entries_) {
    if (entry.id < 0 || entry.id >= count) {
      return Error(absl::StrCat("token ", QuotedToken(spelling), " has id ",
                                entry.id, "; the ids of ", count,
                                " tokens are 0 to ", count - 1,
                                " without holes"));
    }
    if (spelling_of[entry.id] != nullptr) {
      return Error(absl::StrCat("id ", entry.id, " belongs to ",
                                QuotedToken(*spelling_of[entry.id]), " and to ",
                                QuotedToken(spelling)));
    }
    spelling_of[entry.id] = &spelling;
    BpeVocabulary::Token& token = vocabulary->tokens[entry.id];
    token.special = entry.special;
    if (entry.special) {
      token.bytes = spelling;
    } else if (!BytesOfSpelling(spelling, &token.bytes)) {
      return Error(absl::StrCat(
          "token ", QuotedToken(spelling),
          " has a character that spells no byte in byte-level BPE"));
    }
    if (entry.special && spelling == kEndOfText) {
      vocabulary->eot_id = static_cast<int32_t>(entry.id);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> VocabularyBuilder::IdOf(
    const std::string& spelling) const {
  const auto found = entries_.find(spelling);
  if (found == entries_.end()) {
    return Error(absl::StrCat("a merge needs token ", QuotedToken(spelling),
                              ", which the vocabulary lacks"));
  }
  return static_cast<int32_t>(found->second.id);
}

}  // namespace cubit
