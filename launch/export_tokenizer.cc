// SPDX-License-Identifier: Apache-2.0

#include "launch/export_tokenizer.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include <nlohmann/json.hpp>

#include "data/bpe_vocabulary.h"
#include "data/byte_level.h"
#include "data/byte_tokenizer.h"
#include "data/tokenizer_files.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Not ordered_json, which looks for every new key among all earlier ones.
using Json = nlohmann::json;

constexpr char kTokenizerJson[] = "tokenizer.json";
constexpr char kTokenizerConfig[] = "tokenizer_config.json";

// Bytes as a vocabulary without merges.
BpeVocabulary ByteVocabulary(const Tokenizer& tokenizer) {
  BpeVocabulary vocabulary;
  for (int64_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const bool special = id == tokenizer.eot_id();
    vocabulary.tokens.push_back({special
                                     ? std::string(kEndOfText)
                                     : std::string(1, static_cast<char>(id)),
                                 special});
  }
  vocabulary.eot_id = tokenizer.eot_id();
  return vocabulary;
}

absl::StatusOr<BpeVocabulary> VocabularyOf(const Tokenizer& tokenizer) {
  const std::vector<TokenizerFile>& files = tokenizer.files();
  if (tokenizer.name() == "byte") return ByteVocabulary(tokenizer);
  if (files.size() == 1) return ParseTiktoken(files[0].contents);
  return ParseEncoderJson(files[0].contents, files[1].contents);
}

std::string Spelling(const BpeVocabulary::Token& token) {
  return token.special ? token.bytes : SpellingOfBytes(token.bytes);
}

Json AddedTokens(const BpeVocabulary& vocabulary) {
  Json added = Json::array();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (!vocabulary.tokens[id].special) continue;
    added.push_back({{"id", id},
                     {"content", vocabulary.tokens[id].bytes},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  return added;
}

// Hugging Face's form of `vocabulary`. Where `cut_words` is false, text is not
// cut into GPT-2's pieces.
std::string TokenizerJson(const BpeVocabulary& vocabulary, bool cut_words) {
  Json vocab = Json::object();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    vocab[Spelling(vocabulary.tokens[id])] = id;
  }
  Json merges = Json::array();
  for (const BpeMerge& merge : vocabulary.merges) {
    merges.push_back(absl::StrCat(Spelling(vocabulary.tokens[merge.left]), " ",
                                  Spelling(vocabulary.tokens[merge.right])));
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", cut_words}};
  Json json;
  json["version"] = "1.0";
  json["truncation"] = nullptr;
  json["padding"] = nullptr;
  json["added_tokens"] = AddedTokens(vocabulary);
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = byte_level;
  json["post_processor"] = nullptr;
  json["decoder"] = byte_level;
  json["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", false},
                   {"vocab", std::move(vocab)},
                   {"merges", std::move(merges)}};
  return json.dump() + "\n";
}

std::string TokenizerConfig(int64_t max_length) {
  Json json;
  json["tokenizer_class"] = "PreTrainedTokenizerFast";
  json["bos_token"] = std::string(kEndOfText);
  json["eos_token"] = std::string(kEndOfText);
  json["pad_token"] = std::string(kEndOfText);
  json["add_prefix_space"] = false;
  json["clean_up_tokenization_spaces"] = false;
  // "<|endoftext|>" in a text is characters, as in training.
  json["split_special_tokens"] = true;
  json["padding_side"] = "left";
  json["model_max_length"] = max_length;
  return json.dump(2) + "\n";
}

}  // namespace

absl::StatusOr<std::vector<TokenizerFile>> HuggingFaceTokenizer(
    const Tokenizer& tokenizer, int64_t max_length) {
  std::vector<TokenizerFile> files = {
      {kTokenizerConfig, TokenizerConfig(max_length)}};
  const bool is_byte = tokenizer.name() == "byte";
  if (!is_byte && tokenizer.files()[0].name == kTokenizerJson) {
    files.push_back(tokenizer.files()[0]);
    return files;
  }
  CUBIT_ASSIGN_OR_RETURN(const BpeVocabulary vocabulary,
                         VocabularyOf(tokenizer));
  files.push_back({kTokenizerJson, TokenizerJson(vocabulary, !is_byte)});
  // LoadTokenizer knows bytes by their own file.
  if (is_byte) files.push_back(tokenizer.files()[0]);
  return files;
}

}  // namespace cubit
