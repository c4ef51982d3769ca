// SPDX-License-Identifier: Apache-2.0
//
// Documents that are token ids already, out of the files of other programs:
// llm.c's .bin and Megatron's .idx with its .bin. What writes them:
// data/token_file_writer.h.

#ifndef CUBIT_DATA_TOKEN_FILE_READER_H_
#define CUBIT_DATA_TOKEN_FILE_READER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace cubit {

// llm.c: 256 int32, of which [0] is a magic number, [1] a version, [2] the
// number of tokens, and the tokens; no document table. 20240520 version 1 is
// GPT-2's with uint16, 20240801 version 7 Llama 3's with uint32.
constexpr int64_t kLlmcHeaderInts = 256;
constexpr int32_t kLlmcMagic16 = 20240520;
constexpr int32_t kLlmcVersion16 = 1;
constexpr int32_t kLlmcMagic32 = 20240801;
constexpr int32_t kLlmcVersion32 = 7;
constexpr int64_t kLlmcMaxTokens = (int64_t{1} << 31) - 1;

// Megatron's .idx: these nine bytes, uint64 version 1, uint8 element type,
// uint64 sequences S, uint64 entries D + 1 of the document table; then int32
// lengths [S], int64 offsets in the .bin [S], int64 document table [D + 1] (in
// sequences) and perhaps int8 modes [S].
constexpr char kMegatronMagic[] = "MMIDIDX\0";  // with its own zero: 9 bytes
constexpr int64_t kMegatronMagicBytes = 9;
constexpr int64_t kMegatronHeaderBytes = 34;
constexpr uint8_t kMegatronInt32 = 4;
constexpr uint8_t kMegatronUint16 = 8;

// Ids that a document may have.
constexpr int64_t kMaxDocumentTokens = int64_t{64} << 20;

// The vocabulary that the ids are of.
struct TokenVocabulary {
  int64_t size = 0;
  int32_t eot_id = 0;
};

class TokenSource {
 public:
  virtual ~TokenSource() = default;

  // Replaces *ids with those of the next document, without end-of-text ids;
  // false at the end. A document may be empty. Errors name the file: damage, an
  // id beyond the vocabulary, a document over kMaxDocumentTokens. Not to be
  // called after an error.
  virtual absl::StatusOr<bool> Next(std::vector<int32_t>* ids) = 0;
};

// `path` is a .bin of llm.c or an .idx of Megatron, by its suffix. An
// end-of-text id begins (llm.c) or ends (Megatron) a document, or does both;
// what stands before the first one of a .bin is a document too. Memory does not
// grow with the file.
absl::StatusOr<std::unique_ptr<TokenSource>> OpenTokenFile(
    const std::string& path, const TokenVocabulary& vocabulary);

}  // namespace cubit

#endif  // CUBIT_DATA_TOKEN_FILE_READER_H_
