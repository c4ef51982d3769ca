// SPDX-License-Identifier: Apache-2.0
//
// Vocabularies out of tokenizer files. The first byte says which format; what
// is accepted must encode text so that it decodes to itself.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

#include "data/bpe_tokenizer.h"
#include "data/tokenizer_files.h"
#include "data/tokenizer_json.h"
#include "runtime/check.h"

namespace cubit {
namespace {

// Between the two files of OpenAI's format.
constexpr char kSeparator = '\0';

absl::StatusOr<BpeVocabulary> Parse(uint8_t kind, absl::string_view bytes) {
  if (kind % 3 == 0) return ParseTokenizerJson(bytes);
  if (kind % 3 == 1) return ParseTiktoken(bytes);
  const size_t end = bytes.find(kSeparator);
  if (end == absl::string_view::npos) return ParseEncoderJson(bytes, "");
  return ParseEncoderJson(bytes.substr(0, end), bytes.substr(end + 1));
}

void LoadAndUse(uint8_t kind, absl::string_view bytes) {
  absl::StatusOr<BpeVocabulary> vocabulary = Parse(kind, bytes);
  if (!vocabulary.ok()) {
    CUBIT_CHECK(!vocabulary.status().message().empty());
    return;
  }
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      MakeBpeTokenizer(*std::move(vocabulary), {});
  if (!tokenizer.ok()) return;
  const std::string text = "The thing in the text, aaaa  \xC3\xA9\xFF 12";
  std::vector<int32_t> ids;
  (*tokenizer)->Encode(text, &ids);
  for (const int32_t id : ids) {
    CUBIT_CHECK(id >= 0 && id < (*tokenizer)->vocab_size());
    CUBIT_CHECK_NE(id, (*tokenizer)->eot_id());
  }
  std::string decoded;
  (*tokenizer)->Decode(ids, &decoded);
  CUBIT_CHECK(decoded == text);
}

}  // namespace
}  // namespace cubit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  cubit::LoadAndUse(data[0],
                    {reinterpret_cast<const char*>(data) + 1, size - 1});
  return 0;
}
