// SPDX-License-Identifier: Apache-2.0
//
// A data set as token files of other programs: llm.c's .bin and Megatron's .bin
// with its .idx. The formats: data/token_file_reader.h.

#ifndef CUBIT_DATA_TOKEN_FILE_WRITER_H_
#define CUBIT_DATA_TOKEN_FILE_WRITER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "runtime/file_system.h"

namespace cubit {

enum class TokenFileFormat { kLlmc, kMegatron };

struct TokenExportOptions {
  std::string data;   // folder of token shards
  std::string split;  // "train" or "validation"
  TokenFileFormat format = TokenFileFormat::kLlmc;
  std::string out;  // what the names of the files begin with
  // llm.c: a file ends before the document that would make it longer; a longer
  // document has a file of its own.
  int64_t file_tokens = 100000000;
};

struct TokenExportReport {
  std::vector<std::string> files;
  int64_t tokens = 0;
  int64_t documents = 0;
};

// llm.c: OUT_SPLIT_000000.bin and on, the shards' stream as it is: the end of
// text before every document; uint16 if the vocabulary allows, else Llama 3's
// form with uint32. Megatron: OUT_SPLIT.bin and .idx, a sequence for every
// document with the end of text behind it; uint16 for vocabularies below 65,500
// (as Megatron chooses), else int32. Preparing the files again gives the same
// documents. Each file is written aside and renamed, the .idx last. Errors:
// those of the data set, a document too long for the format, a full disk.
absl::StatusOr<TokenExportReport> ExportTokens(
    const TokenExportOptions& options, FileSystem& files);

}  // namespace cubit

#endif  // CUBIT_DATA_TOKEN_FILE_WRITER_H_
