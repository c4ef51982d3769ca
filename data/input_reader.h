// SPDX-License-Identifier: Apache-2.0
//
// The documents of all input files as a sequence of pieces that are read
// independently: several at a time, in this program or, for files that may be
// hostile, in processes of their own (data/reader_process.h).

#ifndef CUBIT_DATA_INPUT_READER_H_
#define CUBIT_DATA_INPUT_READER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "data/parquet_file.h"
#include "data/token_file_reader.h"

namespace cubit {

// Whole files, or row groups of one parquet file.
struct InputPiece {
  std::vector<std::string> paths;
  int64_t first_path = 0;  // its number among the inputs
  // Row groups of paths[0], where it is the only one and parquet.
  int64_t begin_group = 0;
  int64_t end_group = 0;
};

struct InputDocument {
  std::string text;          // never empty, unless
  bool is_tokens = false;    // the file held ids:
  std::vector<int32_t> ids;  // of the vocabulary, no end of text among them
  // Tokens that the document has as its file tells; -1 where it does not.
  int64_t stated_tokens = -1;
  int64_t path = 0;  // its number in the piece
};

// The documents of a piece, in order.
class InputStream {
 public:
  virtual ~InputStream() = default;
  // Replaces *document with the next; false at the end. The errors are those of
  // TextSource and TokenSource. Not to be called after an error.
  virtual absl::StatusOr<bool> Next(InputDocument* document) = 0;
};

// Where pieces are read. Thread-safe.
class InputReader {
 public:
  virtual ~InputReader() = default;

  // In this program.
  static InputReader& InThisProcess();

  virtual absl::StatusOr<std::vector<ParquetGroup>> ParquetGroups(
      const std::string& path) = 0;
  virtual absl::StatusOr<std::unique_ptr<InputStream>> Open(
      const InputPiece& piece, const TokenVocabulary& vocabulary) = 0;
};

// Cuts the inputs into pieces of about 16 MB of text: small files together,
// parquet files between row groups. What is in the pieces, one after the other,
// is what is in the files.
absl::StatusOr<std::vector<InputPiece>> CutIntoPieces(
    const std::vector<std::string>& paths, InputReader& reader);

}  // namespace cubit

#endif  // CUBIT_DATA_INPUT_READER_H_
