// SPDX-License-Identifier: Apache-2.0
//
// Documents of many files as token ids, in order: several threads read pieces
// of the input (data/input_reader.h), one puts them in order, several tokenise,
// the caller takes the results in the order of the documents.

#ifndef CUBIT_DATA_TOKENIZE_PIPELINE_H_
#define CUBIT_DATA_TOKENIZE_PIPELINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "data/input_reader.h"
#include "data/tokenizer.h"

namespace cubit {

// Consecutive documents.
struct TokenizedBatch {
  int64_t first_document = 0;  // index over all files
  // Document d has ids [begins[d], begins[d + 1]); none if it was not wanted.
  std::vector<int32_t> ids;
  std::vector<int64_t> begins;  // [documents + 1]
  // Per document what its file says of the number of ids; -1: nothing, or the
  // document was not wanted.
  std::vector<int64_t> stated_tokens;
  int64_t text_bytes = 0;
  int64_t file = 0;  // number of the last file read from

  int64_t documents() const { return static_cast<int64_t>(begins.size()) - 1; }
  absl::Span<const int32_t> Ids(int64_t d) const;
};

class TokenizePipeline {
 public:
  // Reads `pieces` with `reader`, which like `tokenizer` must outlive this.
  // `threads` tokenise; at most as many read ahead, 16 MB each. Documents for
  // which `wanted` (called by one thread, in order) is false are counted and
  // not tokenised.
  TokenizePipeline(std::vector<InputPiece> pieces, InputReader* reader,
                   const Tokenizer& tokenizer, int threads,
                   std::function<bool(int64_t document)> wanted);
  // Stops all threads, whatever is left.
  ~TokenizePipeline();
  TokenizePipeline(const TokenizePipeline&) = delete;
  TokenizePipeline& operator=(const TokenizePipeline&) = delete;

  // Replaces *batch with the next; false after the last. The first error of
  // reading comes after the batches before it.
  absl::StatusOr<bool> Next(TokenizedBatch* batch);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace cubit

#endif  // CUBIT_DATA_TOKENIZE_PIPELINE_H_
