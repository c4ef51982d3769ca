// SPDX-License-Identifier: Apache-2.0
//
// A tokenizer for tests of what lies around tokenizers: byte b becomes b * k
// with end of text 255 * k + 1, so k chooses between uint16 and uint32 shards.

#ifndef CUBIT_TESTS_DATA_FAKE_TOKENIZER_H_
#define CUBIT_TESTS_DATA_FAKE_TOKENIZER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

#include "data/tokenizer.h"
#include "runtime/digest.h"

namespace cubit {

class FakeTokenizer : public Tokenizer {
 public:
  explicit FakeTokenizer(int32_t factor)
      : factor_(factor),
        name_(absl::StrCat("fake", factor)),
        sha256_(Sha256Hex(name_)),
        files_({{"fake.txt", name_}}) {}

  void Encode(absl::string_view text,
              std::vector<int32_t>* ids) const override {
    for (const char c : text) {
      ids->push_back(static_cast<unsigned char>(c) * factor_);
    }
  }
  void Decode(absl::Span<const int32_t> ids, std::string* text) const override {
    for (const int32_t id : ids) {
      if (id != eot_id()) text->push_back(static_cast<char>(id / factor_));
    }
  }
  const std::string& name() const override { return name_; }
  int64_t vocab_size() const override { return eot_id() + 1; }
  int32_t eot_id() const override { return 255 * factor_ + 1; }
  const std::string& sha256() const override { return sha256_; }
  const std::vector<TokenizerFile>& files() const override { return files_; }

 private:
  int32_t factor_;
  std::string name_;
  std::string sha256_;
  std::vector<TokenizerFile> files_;
};

}  // namespace cubit

#endif  // CUBIT_TESTS_DATA_FAKE_TOKENIZER_H_
