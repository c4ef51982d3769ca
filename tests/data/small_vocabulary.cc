// SPDX-License-Identifier: Apache-2.0

#include "tests/data/small_vocabulary.h"

#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "data/byte_level.h"

namespace cubit {

SmallVocabulary MakeSmallVocabulary() {
  const std::vector<std::pair<std::string, std::string>> merges = {
      {"t", "h"}, {"th", "e"},      {" ", "the"}, {"i", "n"},  {"in", "g"},
      {" ", " "}, {"\xC3", "\xA9"}, {"a", "a"},   {"aa", "aa"}};
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) {
    tokens.emplace_back(1, static_cast<char>(byte));
  }
  for (const auto& [left, right] : merges) tokens.push_back(left + right);

  SmallVocabulary files;
  nlohmann::json vocab = nlohmann::json::object();
  for (size_t id = 0; id < tokens.size(); ++id) {
    vocab[SpellingOfBytes(tokens[id])] = id;
    absl::StrAppend(&files.tiktoken, absl::Base64Escape(tokens[id]), " ", id,
                    "\n");
  }
  vocab["<|endoftext|>"] = tokens.size();
  files.encoder_json = vocab.dump();
  files.vocab_bpe = "#version: 0.2\n";
  nlohmann::json merge_list = nlohmann::json::array();
  for (const auto& [left, right] : merges) {
    const std::string line =
        absl::StrCat(SpellingOfBytes(left), " ", SpellingOfBytes(right));
    merge_list.push_back(line);
    absl::StrAppend(&files.vocab_bpe, line, "\n");
  }
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"added_tokens",
       {{{"id", tokens.size()},
         {"content", "<|endoftext|>"},
         {"special", true}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merge_list}}}};
  files.tokenizer_json = tokenizer.dump();
  return files;
}

}  // namespace cubit
