// SPDX-License-Identifier: Apache-2.0
//
// Documents out of a stream of bytes, for text_source.h. `name` is the input's
// in messages.

#ifndef CUBIT_DATA_DOCUMENT_READER_H_
#define CUBIT_DATA_DOCUMENT_READER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "data/compressed_reader.h"
#include "data/text_source.h"

namespace cubit {

// Limit of a document, and of a line that holds one. It also bounds what a
// small compressed file can expand to in memory.
constexpr int64_t kMaxDocumentBytes = int64_t{256} << 20;

// All of `input` as one document; none if there is no text.
std::unique_ptr<TextSource> MakePlainTextSource(
    std::unique_ptr<ByteReader> input, const std::string& name,
    int64_t max_document_bytes = kMaxDocumentBytes);

// A document for every line, ended by "\n" or "\r\n" (the last may lack it).
// Memory is at most three times the longest line.
std::unique_ptr<TextSource> MakeJsonLinesSource(
    std::unique_ptr<ByteReader> input, const std::string& name,
    int64_t max_document_bytes = kMaxDocumentBytes);

}  // namespace cubit

#endif  // CUBIT_DATA_DOCUMENT_READER_H_
