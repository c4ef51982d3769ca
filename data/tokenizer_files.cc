// SPDX-License-Identifier: Apache-2.0

#include "data/tokenizer_files.h"

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "data/bpe_merger.h"
#include "data/json_events.h"
#include "data/vocabulary_builder.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

absl::Status Error(absl::string_view what) {
  return absl::InvalidArgumentError(what);
}

// Calls line(number, contents) for every line, from 1, without its "\n" or
// "\r\n".
template <typename Function>
absl::Status ForEachLine(absl::string_view text, Function line) {
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    const absl::string_view contents =
        absl::StripSuffix(text.substr(0, end), "\r");
    CUBIT_RETURN_IF_ERROR(line(number, contents));
    text.remove_prefix(end == absl::string_view::npos ? text.size() : end + 1);
  }
  return absl::OkStatus();
}

class EncoderJsonHandler : public JsonHandler {
 public:
  explicit EncoderJsonHandler(VocabularyBuilder* builder) : builder_(builder) {}

  absl::Status OnValue(const JsonPath& path, const JsonValue& value) override {
    if (path.empty()) {
      if (value.kind == JsonValue::Kind::kObject) return absl::OkStatus();
      return Error(absl::StrCat("holds ", Describe(value.kind),
                                ", an object from token to id is wanted"));
    }
    if (value.kind != JsonValue::Kind::kInteger) {
      return Error(absl::StrCat("the id of token ", QuotedToken(path[0]),
                                " is ", Describe(value.kind),
                                ", an integer is wanted"));
    }
    return path[0] == kEndOfText ? builder_->AddSpecial(path[0], value.integer)
                                 : builder_->AddToken(path[0], value.integer);
  }

 private:
  VocabularyBuilder* const builder_;
};

// Tokens of a tiktoken file by rank; those not seen are empty.
absl::StatusOr<std::vector<std::string>> TiktokenTokens(
    absl::string_view contents) {
  std::vector<std::pair<int64_t, std::string>> entries;
  CUBIT_RETURN_IF_ERROR(
      ForEachLine(contents, [&](int64_t number, absl::string_view line) {
        if (line.empty()) return absl::OkStatus();
        const size_t space = line.find(' ');
        std::string bytes;
        int64_t rank = 0;
        if (space == absl::string_view::npos ||
            !absl::Base64Unescape(line.substr(0, space), &bytes) ||
            !absl::SimpleAtoi(line.substr(space + 1), &rank)) {
          return Error(absl::StrCat(
              "line ", number, " is ", QuotedToken(line),
              "; a token in base64, a space and its rank are wanted"));
        }
        entries.emplace_back(rank, std::move(bytes));
        return absl::OkStatus();
      }));
  const auto count = static_cast<int64_t>(entries.size());
  std::vector<std::string> tokens(entries.size());
  for (auto& [rank, bytes] : entries) {
    if (bytes.empty()) return Error(absl::StrCat("token ", rank, " is empty"));
    if (rank < 0 || rank >= count || !tokens[rank].empty()) {
      return Error(absl::StrCat("rank ", rank,
                                " is out of place: the ranks of ", count,
                                " tokens are 0 to ", count - 1, ", each once"));
    }
    tokens[rank] = std::move(bytes);
  }
  return tokens;
}

// tiktoken's newer encodings, known by their number of tokens, cut text by
// other expressions, of which their files say nothing.
absl::Status CheckTiktokenCount(size_t count) {
  constexpr size_t kCl100kTokens = 100256;
  constexpr size_t kO200kTokens = 199998;
  if (count != kCl100kTokens && count != kO200kTokens) return absl::OkStatus();
  return Error(absl::StrCat("has the ", count, " tokens of ",
                            count == kCl100kTokens ? "cl100k" : "o200k",
                            "_base, which cuts text in another way than "
                            "GPT-2; r50k_base is supported"));
}

}  // namespace

absl::StatusOr<BpeVocabulary> ParseEncoderJson(absl::string_view encoder_json,
                                               absl::string_view merges) {
  VocabularyBuilder builder;
  EncoderJsonHandler handler(&builder);
  CUBIT_RETURN_IF_ERROR(ReadJson(encoder_json, /*unique_keys=*/true, &handler));
  CUBIT_RETURN_IF_ERROR(ForEachLine(merges, [&](int64_t number,
                                                absl::string_view line) {
    const bool is_version = number == 1 && absl::StartsWith(line, "#version");
    if (line.empty() || is_version) return absl::OkStatus();
    return builder.AddMergeLine(line);
  }));
  return builder.Finish();
}

absl::StatusOr<BpeVocabulary> ParseTiktoken(absl::string_view contents) {
  CUBIT_ASSIGN_OR_RETURN(std::vector<std::string> tokens,
                         TiktokenTokens(contents));
  CUBIT_RETURN_IF_ERROR(CheckTiktokenCount(tokens.size()));
  std::array<int32_t, 256> byte_ids;
  byte_ids.fill(-1);
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].size() != 1) continue;
    byte_ids[static_cast<unsigned char>(tokens[id][0])] =
        static_cast<int32_t>(id);
  }
  for (const int32_t id : byte_ids) {
    if (id < 0) return Error("lacks one of the 256 single bytes");
  }
  BpeVocabulary vocabulary;
  BpeMerger merger(byte_ids);
  std::vector<int32_t> parts;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].size() == 1) continue;
    parts.clear();
    merger.Merge(tokens[id], &parts);
    if (parts.size() != 2) {
      return Error(absl::StrCat("token ", id, ", ", QuotedToken(tokens[id]),
                                ", is not two tokens of lower rank"));
    }
    const BpeMerge merge = {parts[0], parts[1], static_cast<int32_t>(id)};
    merger.Add(merge);
    vocabulary.merges.push_back(merge);
  }
  for (std::string& token : tokens) {
    vocabulary.tokens.push_back({std::move(token), /*special=*/false});
  }
  vocabulary.eot_id = static_cast<int32_t>(vocabulary.tokens.size());
  vocabulary.tokens.push_back({kEndOfText, /*special=*/true});
  return vocabulary;
}

}  // namespace cubit
