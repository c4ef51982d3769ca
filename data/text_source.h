// SPDX-License-Identifier: Apache-2.0
//
// Documents from text files: .txt (and .pod, .md, .rst, no suffix) is one
// document a file, .jsonl one JSON object a line with the text in field "text";
// each plain or .gz, .dz, .xz, .zst. Rows of parquet files come from
// data/parquet_file.h. Reading is streamed: memory does not grow with the file.

#ifndef CUBIT_DATA_TEXT_SOURCE_H_
#define CUBIT_DATA_TEXT_SOURCE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace cubit {

// The documents of one file, in order.
class TextSource {
 public:
  virtual ~TextSource() = default;

  // Replaces *text with the next document; false at the end. Errors name the
  // file and the line or byte offset: damaged compression, invalid JSON, a
  // missing or non-string "text", a document that is not valid UTF-8, nesting
  // or size over the limits (64 levels, 256 MiB a document). Errors repeat.
  // A document without text is left out, as are blank lines; a byte order mark
  // at the start of a file is dropped. All other bytes are kept.
  virtual absl::StatusOr<bool> Next(std::string* text) = 0;

  // How many tokens the last document has as its file tells, in FineWeb's field
  // "token_count" or DataTrove's "metadata.token_count"; -1 where it does not.
  virtual int64_t stated_tokens() const { return -1; }
};

// A text file. FailedPrecondition for the kinds that hold something else.
absl::StatusOr<std::unique_ptr<TextSource>> OpenTextFile(
    const std::string& path);

// Files named by `inputs`, of every format of data/text_format.h: files stand
// for themselves, folders for the .parquet and .jsonl files below them or,
// where there are none, for every file of text, patterns with * or ? for what
// they match. Sorted, without repeats; naming nothing readable is an error that
// lists the formats. In folders and patterns, other files and hidden ones are
// passed over, and links to folders are not followed; a file named by itself
// must be supported.
absl::StatusOr<std::vector<std::string>> ListTextFiles(
    const std::vector<std::string>& inputs);

}  // namespace cubit

#endif  // CUBIT_DATA_TEXT_SOURCE_H_
