// SPDX-License-Identifier: Apache-2.0
//
// Text to token ids and back. Two kinds: bytes (257 ids: the bytes and the end
// of text) and GPT-2's byte-level BPE, exact. A tokenizer carries the files it
// was made from, so that shards and checkpoints can keep a copy.

#ifndef CUBIT_DATA_TOKENIZER_H_
#define CUBIT_DATA_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "runtime/file_system.h"

namespace cubit {

// A file that belongs to a tokenizer: name without folder, and contents.
struct TokenizerFile {
  std::string name;
  std::string contents;
};

// Immutable and thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Appends the ids of `text` (UTF-8; invalid bytes are encoded as bytes).
  // Special tokens are not recognised in text: "<|endoftext|>" in a document is
  // ordinary characters.
  virtual void Encode(absl::string_view text,
                      std::vector<int32_t>* ids) const = 0;
  // Appends the bytes of `ids`; the end of text and ids beyond the vocabulary
  // (padding of the model's) add nothing.
  virtual void Decode(absl::Span<const int32_t> ids,
                      std::string* text) const = 0;

  virtual const std::string& name() const = 0;  // "byte", "gpt2"
  virtual int64_t vocab_size() const = 0;       // 257; 50257
  virtual int32_t eot_id() const = 0;           // end of text, before documents
  // SHA-256 of what determines the ids (vocabulary and merges), the same for
  // every file format of one vocabulary. 64 hexadecimal digits.
  virtual const std::string& sha256() const = 0;
  virtual const std::vector<TokenizerFile>& files() const = 0;
};

// `spec` is "byte", a Hugging Face tokenizer.json, a tiktoken file, a folder
// with encoder.json and vocab.bpe, or a folder written by SaveTokenizer. Files
// may be .xz or .gz. Errors name the file and what was wrong with it.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(
    const std::string& spec);

// Writes the tokenizer's files into `folder` (created), so that
// LoadTokenizer(folder) gives the same tokenizer.
absl::Status SaveTokenizer(const Tokenizer& tokenizer, FileSystem& files,
                           const std::string& folder);

}  // namespace cubit

#endif  // CUBIT_DATA_TOKENIZER_H_
