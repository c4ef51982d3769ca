// SPDX-License-Identifier: Apache-2.0

#include "data/tokenizer_json.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

#include "data/json_events.h"
#include "data/vocabulary_builder.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// A field of tokenizer.json that decides the ids, and the only values that give
// GPT-2's. `wanted` is for the message.
struct Constraint {
  const char* parent;
  const char* field;
  const char* wanted;
  bool (*holds)(const JsonValue& value);
};

bool IsString(const JsonValue& value, absl::string_view text) {
  return value.kind == JsonValue::Kind::kString && *value.string == text;
}
bool IsFalse(const JsonValue& value) {
  return value.kind == JsonValue::Kind::kBool && !value.boolean;
}
bool IsTrue(const JsonValue& value) {
  return value.kind == JsonValue::Kind::kBool && value.boolean;
}
bool IsNull(const JsonValue& value) {
  return value.kind == JsonValue::Kind::kNull;
}
bool IsNothing(const JsonValue& value) {
  return IsNull(value) || IsString(value, "");
}
bool IsBpe(const JsonValue& value) { return IsString(value, "BPE"); }
bool IsByteLevel(const JsonValue& value) {
  return IsString(value, "ByteLevel");
}

constexpr Constraint kConstraints[] = {
    {"", "normalizer", "null", IsNull},
    {"model", "type", "\"BPE\"", IsBpe},
    {"model", "dropout", "null", IsNull},
    {"model", "continuing_subword_prefix", "null", IsNothing},
    {"model", "end_of_word_suffix", "null", IsNothing},
    {"model", "byte_fallback", "false", IsFalse},
    {"model", "ignore_merges", "false", IsFalse},
    {"pre_tokenizer", "type", "\"ByteLevel\"", IsByteLevel},
    {"pre_tokenizer", "add_prefix_space", "false", IsFalse},
    {"pre_tokenizer", "use_regex", "true", IsTrue},
};

std::string Show(const JsonValue& value) {
  if (value.kind == JsonValue::Kind::kString) return QuotedToken(*value.string);
  if (value.kind == JsonValue::Kind::kBool) {
    return value.boolean ? "true" : "false";
  }
  return Describe(value.kind);
}

absl::Status CheckKind(absl::string_view name, const JsonValue& value,
                       JsonValue::Kind wanted) {
  if (value.kind == wanted) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is ", Describe(value.kind), ", ",
                   Describe(wanted), " is wanted"));
}

class TokenizerJsonHandler : public JsonHandler {
 public:
  absl::Status OnValue(const JsonPath& path, const JsonValue& value) override {
    if (path.empty()) {
      return CheckKind("tokenizer", value, JsonValue::Kind::kObject);
    }
    CUBIT_RETURN_IF_ERROR(CheckConstraints(path, value));
    if (path[0] == "added_tokens") return OnAddedToken(path, value);
    if (path[0] == "model") return OnModel(path, value);
    if (path.size() == 2 && path[0] == "pre_tokenizer" && path[1] == "type") {
      has_pre_tokenizer_ = true;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<BpeVocabulary> Finish() {
    if (!has_vocab_ || !has_merges_) {
      return absl::InvalidArgumentError(
          "has no \"model\" with \"vocab\" and \"merges\"; a "
          "tokenizer.json of Hugging Face's tokenizers is wanted (of "
          "encoder.json and vocab.bpe, name the folder)");
    }
    if (!has_pre_tokenizer_) {
      return absl::InvalidArgumentError(
          "has no \"pre_tokenizer\" of type \"ByteLevel\"");
    }
    CUBIT_RETURN_IF_ERROR(CheckMergeEnded());
    CUBIT_RETURN_IF_ERROR(FinishAddedToken());
    return builder_.Finish();
  }

 private:
  static absl::Status CheckConstraints(const JsonPath& path,
                                       const JsonValue& value) {
    if (path.size() > 2) return absl::OkStatus();
    const absl::string_view parent =
        path.size() == 2 ? absl::string_view(path[0]) : "";
    for (const Constraint& constraint : kConstraints) {
      if (parent != constraint.parent || path.back() != constraint.field ||
          constraint.holds(value)) {
        continue;
      }
      return absl::InvalidArgumentError(
          absl::StrCat("\"", parent, parent.empty() ? "" : ".",
                       constraint.field, "\" is ", Show(value), ", only ",
                       constraint.wanted, " is supported (GPT-2's)"));
    }
    return absl::OkStatus();
  }

  absl::Status OnModel(const JsonPath& path, const JsonValue& value) {
    if (path.size() == 1) {
      return CheckKind("model", value, JsonValue::Kind::kObject);
    }
    if (path[1] == "vocab") {
      has_vocab_ = true;
      if (path.size() == 2) {
        return CheckKind("model.vocab", value, JsonValue::Kind::kObject);
      }
      CUBIT_RETURN_IF_ERROR(
          CheckKind("model.vocab[]", value, JsonValue::Kind::kInteger));
      return builder_.AddToken(path[2], value.integer);
    }
    if (path[1] == "merges") {
      has_merges_ = true;
      if (path.size() == 2) {
        return CheckKind("model.merges", value, JsonValue::Kind::kArray);
      }
      return OnMerge(path, value);
    }
    return absl::OkStatus();
  }

  // A merge is "left right" or, since tokenizers 0.20, ["left", "right"].
  absl::Status OnMerge(const JsonPath& path, const JsonValue& value) {
    if (path.size() == 3 && value.kind == JsonValue::Kind::kString) {
      return builder_.AddMergeLine(*value.string);
    }
    if (path.size() == 3 && value.kind == JsonValue::Kind::kArray) {
      CUBIT_RETURN_IF_ERROR(CheckMergeEnded());
      tokens_in_merge_ = 0;
      return absl::OkStatus();
    }
    if (path.size() != 4 || value.kind != JsonValue::Kind::kString ||
        tokens_in_merge_ == 2) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a merge holds ", Describe(value.kind), " besides its two tokens"));
    }
    if (++tokens_in_merge_ == 2) {
      builder_.AddMerge(left_, *value.string);
    } else {
      left_ = *value.string;
    }
    return absl::OkStatus();
  }

  absl::Status CheckMergeEnded() const {
    return tokens_in_merge_ == 2
               ? absl::OkStatus()
               : absl::InvalidArgumentError("a merge has not two tokens");
  }

  absl::Status OnAddedToken(const JsonPath& path, const JsonValue& value) {
    if (path.size() == 1) {
      if (IsNull(value)) return absl::OkStatus();
      return CheckKind("added_tokens", value, JsonValue::Kind::kArray);
    }
    if (path.size() == 2) {
      CUBIT_RETURN_IF_ERROR(
          CheckKind("added_tokens[]", value, JsonValue::Kind::kObject));
      CUBIT_RETURN_IF_ERROR(FinishAddedToken());
      in_added_token_ = true;
      return absl::OkStatus();
    }
    if (path.size() > 3) return absl::OkStatus();
    if (path[2] == "content") {
      CUBIT_RETURN_IF_ERROR(
          CheckKind("added_tokens[].content", value, JsonValue::Kind::kString));
      added_name_ = *value.string;
    } else if (path[2] == "id") {
      CUBIT_RETURN_IF_ERROR(
          CheckKind("added_tokens[].id", value, JsonValue::Kind::kInteger));
      added_id_ = value.integer;
    } else if (path[2] == "special") {
      added_special_ = IsTrue(value);
    }
    return absl::OkStatus();
  }

  // Takes the added token that the next one, or the end of the file, ends.
  absl::Status FinishAddedToken() {
    if (!in_added_token_) return absl::OkStatus();
    if (!added_special_) {
      return absl::InvalidArgumentError(
          absl::StrCat("added token ", QuotedToken(added_name_),
                       " is not special: it would be cut out of "
                       "ordinary text, which is not supported"));
    }
    CUBIT_RETURN_IF_ERROR(builder_.AddSpecial(added_name_, added_id_));
    in_added_token_ = false;
    added_special_ = false;
    added_name_.clear();
    added_id_ = -1;
    return absl::OkStatus();
  }

  VocabularyBuilder builder_;
  bool has_vocab_ = false;
  bool has_merges_ = false;
  bool has_pre_tokenizer_ = false;
  int tokens_in_merge_ = 2;
  std::string left_;
  bool in_added_token_ = false;
  bool added_special_ = false;
  std::string added_name_;
  int64_t added_id_ = -1;
};

}  // namespace

absl::StatusOr<BpeVocabulary> ParseTokenizerJson(absl::string_view contents) {
  TokenizerJsonHandler handler;
  CUBIT_RETURN_IF_ERROR(ReadJson(contents, /*unique_keys=*/true, &handler));
  return handler.Finish();
}

}  // namespace cubit
