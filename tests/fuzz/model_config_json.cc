// SPDX-License-Identifier: Apache-2.0
//
// config.json of a Hugging Face folder. Only one that says what the model is
// may be accepted.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/strings/string_view.h"

#include "data/byte_tokenizer.h"
#include "launch/export_config.h"
#include "runtime/check.h"

namespace cubit {
namespace {

ModelConfig Model() {
  ModelConfig config;
  config.num_layers = 1;
  config.hidden_size = 8;
  config.num_heads = 2;
  config.ffn_hidden_size = 16;
  config.vocab_size = 320;
  config.valid_vocab = 257;
  config.seq_len = 16;
  return config;
}

void Check(absl::string_view text) {
  static const Tokenizer* const tokenizer = MakeByteTokenizer().release();
  const absl::Status status = CheckHuggingFaceConfig(text, Model(), *tokenizer);
  if (!status.ok()) {
    CUBIT_CHECK(!status.message().empty());
    return;
  }
  ModelConfig other = Model();
  other.num_heads = 4;
  CUBIT_CHECK(!CheckHuggingFaceConfig(text, other, *tokenizer).ok());
}

}  // namespace
}  // namespace cubit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  cubit::Check({reinterpret_cast<const char*>(data), size});
  return 0;
}
