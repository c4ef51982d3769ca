// SPDX-License-Identifier: Apache-2.0

#include "data/bpe_tokenizer.h"

#include <array>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"

#include "data/bpe_merger.h"
#include "data/gpt2_pieces.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// BpeVocabularySha256 of OpenAI's encoder.json and vocab.bpe.
constexpr char kGpt2Sha256[] =
    "6ebb043fdaade306692311ce555c7a1f31371e03e12a83ab5ae3124fbda58e16";

std::array<int32_t, 256> ByteIds(const BpeVocabulary& vocabulary) {
  std::array<int32_t, 256> ids = {};
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const BpeVocabulary::Token& token = vocabulary.tokens[id];
    if (token.special || token.bytes.size() != 1) continue;
    ids[static_cast<unsigned char>(token.bytes[0])] = static_cast<int32_t>(id);
  }
  return ids;
}

class BpeTokenizer : public Tokenizer {
 public:
  BpeTokenizer(const BpeVocabulary& vocabulary,
               std::vector<TokenizerFile> files)
      : merger_(ByteIds(vocabulary)),
        eot_id_(vocabulary.eot_id),
        sha256_(BpeVocabularySha256(vocabulary)),
        name_(sha256_ == kGpt2Sha256 ? "gpt2" : "bpe"),
        files_(std::move(files)) {
    for (const BpeMerge& merge : vocabulary.merges) merger_.Add(merge);
    bytes_.reserve(vocabulary.tokens.size());
    for (const BpeVocabulary::Token& token : vocabulary.tokens) {
      bytes_.push_back(token.special ? "" : token.bytes);
    }
    FillWords();
  }

  void Encode(absl::string_view text,
              std::vector<int32_t>* ids) const override {
    ForEachGpt2Piece(text, [&](absl::string_view piece) {
      const auto word = words_.find(piece);
      if (word != words_.end()) {
        ids->push_back(word->second);
      } else {
        merger_.Merge(piece, ids);
      }
    });
  }

  void Decode(absl::Span<const int32_t> ids, std::string* text) const override {
    for (const int32_t id : ids) {
      if (id >= 0 && id < vocab_size()) *text += bytes_[id];
    }
  }

  const std::string& name() const override { return name_; }
  int64_t vocab_size() const override {
    return static_cast<int64_t>(bytes_.size());
  }
  int32_t eot_id() const override { return eot_id_; }
  const std::string& sha256() const override { return sha256_; }
  const std::vector<TokenizerFile>& files() const override { return files_; }

 private:
  // A piece that is a token's bytes need not be merged, provided that merging
  // would give that token (odd vocabularies hold tokens that it never gives).
  void FillWords() {
    std::vector<int32_t> ids;
    for (size_t id = 0; id < bytes_.size(); ++id) {
      ids.clear();
      merger_.Merge(bytes_[id], &ids);
      const auto expected = static_cast<int32_t>(id);
      if (ids.size() == 1 && ids[0] == expected) words_[bytes_[id]] = expected;
    }
  }

  BpeMerger merger_;
  std::vector<std::string> bytes_;  // by id; special tokens have none
  absl::flat_hash_map<absl::string_view, int32_t> words_;  // into bytes_
  const int32_t eot_id_;
  const std::string sha256_;
  const std::string name_;
  const std::vector<TokenizerFile> files_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeBpeTokenizer(
    const BpeVocabulary& vocabulary, std::vector<TokenizerFile> files) {
  CUBIT_RETURN_IF_ERROR(CheckBpeVocabulary(vocabulary));
  return std::make_unique<BpeTokenizer>(vocabulary, std::move(files));
}

}  // namespace cubit
