// SPDX-License-Identifier: Apache-2.0

#include "data/bpe_vocabulary.h"

#include <array>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "runtime/digest.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

std::string Quoted(absl::string_view bytes) {
  constexpr size_t kLongest = 60;
  return absl::StrCat("\"", absl::CHexEscape(bytes.substr(0, kLongest)),
                      bytes.size() > kLongest ? "...\"" : "\"");
}

absl::Status CheckTokens(const BpeVocabulary& vocabulary) {
  absl::flat_hash_set<absl::string_view> ordinary;
  std::array<bool, 256> has_byte = {};
  for (const BpeVocabulary::Token& token : vocabulary.tokens) {
    if (token.special) continue;
    if (token.bytes.empty()) {
      return absl::InvalidArgumentError("a token is empty");
    }
    if (!ordinary.insert(token.bytes).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", Quoted(token.bytes), " occurs twice"));
    }
    if (token.bytes.size() == 1) {
      has_byte[static_cast<unsigned char>(token.bytes[0])] = true;
    }
  }
  for (size_t byte = 0; byte < has_byte.size(); ++byte) {
    if (!has_byte[byte]) {
      return absl::InvalidArgumentError(
          absl::StrCat("byte 0x", absl::Hex(byte, absl::kZeroPad2),
                       " is not a token; a byte-level vocabulary has all 256"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckMerge(const BpeVocabulary& vocabulary, size_t rank) {
  const BpeMerge& merge = vocabulary.merges[rank];
  const auto size = static_cast<int64_t>(vocabulary.tokens.size());
  for (const int32_t id : {merge.left, merge.right, merge.result}) {
    if (id < 0 || id >= size || vocabulary.tokens[id].special) {
      return absl::InvalidArgumentError(absl::StrCat(
          "merge ", rank, " names id ", id, ", which is no ordinary token"));
    }
  }
  const absl::string_view left = vocabulary.tokens[merge.left].bytes;
  const absl::string_view right = vocabulary.tokens[merge.right].bytes;
  const absl::string_view result = vocabulary.tokens[merge.result].bytes;
  if (result.size() != left.size() + right.size() ||
      result.substr(0, left.size()) != left ||
      result.substr(left.size()) != right) {
    return absl::InvalidArgumentError(
        absl::StrCat("merge ", rank, " makes ", Quoted(result), " of ",
                     Quoted(left), " and ", Quoted(right)));
  }
  return absl::OkStatus();
}

absl::Status CheckMerges(const BpeVocabulary& vocabulary) {
  absl::flat_hash_set<std::pair<int32_t, int32_t>> pairs;
  std::vector<bool> made(vocabulary.tokens.size(), false);
  for (size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    CUBIT_RETURN_IF_ERROR(CheckMerge(vocabulary, rank));
    const BpeMerge& merge = vocabulary.merges[rank];
    if (!pairs.insert({merge.left, merge.right}).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the merge of ", Quoted(vocabulary.tokens[merge.left].bytes), " and ",
          Quoted(vocabulary.tokens[merge.right].bytes), " occurs twice"));
    }
    made[merge.result] = true;
  }
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const BpeVocabulary::Token& token = vocabulary.tokens[id];
    if (!token.special && token.bytes.size() > 1 && !made[id]) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", id, ", ", Quoted(token.bytes),
                       ", is made by no merge and is not declared special"));
    }
  }
  return absl::OkStatus();
}

void AppendU32(size_t value, std::string* out) {
  for (int shift = 0; shift < 32; shift += 8) {
    out->push_back(static_cast<char>(value >> shift & 0xFF));
  }
}

}  // namespace

const char kEndOfText[] = "<|endoftext|>";

absl::Status CheckBpeVocabulary(const BpeVocabulary& vocabulary) {
  CUBIT_RETURN_IF_ERROR(CheckTokens(vocabulary));
  CUBIT_RETURN_IF_ERROR(CheckMerges(vocabulary));
  const int64_t eot_id = vocabulary.eot_id;
  if (eot_id < 0 || eot_id >= static_cast<int64_t>(vocabulary.tokens.size()) ||
      !vocabulary.tokens[eot_id].special ||
      vocabulary.tokens[eot_id].bytes != kEndOfText) {
    return absl::InvalidArgumentError(
        absl::StrCat("no special token ", kEndOfText));
  }
  return absl::OkStatus();
}

std::string BpeVocabularySha256(const BpeVocabulary& vocabulary) {
  std::string text = "cubit-bpe-1\n";
  AppendU32(vocabulary.tokens.size(), &text);
  for (const BpeVocabulary::Token& token : vocabulary.tokens) {
    AppendU32(token.bytes.size(), &text);
    text.push_back(token.special ? '\1' : '\0');
    text += token.bytes;
  }
  AppendU32(static_cast<size_t>(vocabulary.eot_id), &text);
  AppendU32(vocabulary.merges.size(), &text);
  for (const BpeMerge& merge : vocabulary.merges) {
    AppendU32(static_cast<size_t>(merge.left), &text);
    AppendU32(static_cast<size_t>(merge.right), &text);
    AppendU32(static_cast<size_t>(merge.result), &text);
  }
  return Sha256Hex(text);
}

}  // namespace cubit
