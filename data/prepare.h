// SPDX-License-Identifier: Apache-2.0
//
// Files of text or token ids to a folder of token shards: the library behind
// //data:prepare. Documents are read and tokenised by several threads and
// written in order (data/tokenize_pipeline.h), so the result does not depend on
// their number. Memory does not grow with the input.

#ifndef CUBIT_DATA_PREPARE_H_
#define CUBIT_DATA_PREPARE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "data/token_count_check.h"
#include "data/tokenizer.h"
#include "runtime/file_system.h"

namespace cubit {

struct PrepareOptions {
  std::vector<std::string> inputs;  // files, folders, patterns: ListTextFiles
  std::string out;                  // folder
  int threads = 1;                  // that tokenise, and as many that read
  // Reads the inputs and tries the tokenizer's files in processes of their own
  // (data/reader_process.h); main must call RunReaderProcess.
  bool isolate = false;
  // A shard ends before the document that would make it longer than this; a
  // longer document has a shard of its own.
  int64_t shard_tokens = int64_t{32} << 20;
  // Share of the documents that go to split "validation" (SplitRule); 0 for
  // none.
  double validation_fraction = 0.01;
  std::string source;   // free text for the attribute; empty: the inputs' names
  std::string created;  // UTC; empty: now. For files equal byte for byte
  bool show_progress = false;
  // Where another process prepares into the same folder: wait for it (a cache,
  // whose folder is named by what it holds) instead of refusing.
  bool wait_for_others = false;
};

struct PrepareReport {
  // The folder held this very data set already; nothing was done.
  bool was_complete = false;
  int64_t reused_shards = 0;  // of an interrupted preparation
  int64_t shards = 0;
  int64_t train_documents = 0;
  int64_t train_tokens = 0;
  int64_t validation_documents = 0;
  int64_t validation_tokens = 0;
  int64_t text_bytes = 0;  // read by this run
  // Of the documents tokenised by this run; empty for a tokenizer other than
  // GPT-2's, which the numbers are of.
  TokenCountCheck token_counts;
  double seconds = 0;
};

// Prepares options.inputs into options.out.
//
// Killed at any moment, it leaves whole shards and prepare.json (what was asked
// for, and of which inputs) but no index.json; the same call then continues. A
// folder that holds the same data set, complete, is left as it is; one that
// holds another is refused with what differs. An unfinished preparation of
// something else is started again.
//
// Errors: inputs that name nothing, cannot be read or have no text; a folder
// that cannot be written; a full disk. Temporary files are removed; after bad
// input everything that was written is, otherwise the finished shards stay for
// the next call.
absl::StatusOr<PrepareReport> Prepare(const PrepareOptions& options,
                                      const Tokenizer& tokenizer,
                                      FileSystem& files);

// The same with LoadTokenizer(tokenizer_spec) on the system's files.
absl::StatusOr<PrepareReport> Prepare(const PrepareOptions& options,
                                      const std::string& tokenizer_spec);

}  // namespace cubit

#endif  // CUBIT_DATA_PREPARE_H_
