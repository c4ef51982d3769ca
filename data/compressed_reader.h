// SPDX-License-Identifier: Apache-2.0
//
// Streams of bytes out of files and memory, plain or compressed (gzip, xz,
// Zstandard). Memory is bounded whatever the input claims: a window of 64 KiB
// plus the decoder's own (xz at most 256 MiB, Zstandard at most 128 MiB).

#ifndef CUBIT_DATA_COMPRESSED_READER_H_
#define CUBIT_DATA_COMPRESSED_READER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cubit {

class ByteReader {
 public:
  virtual ~ByteReader() = default;

  // Reads at least 1 and at most `size` >= 1 bytes into `data`; returns how
  // many, 0 at the end. Errors name the input and repeat.
  virtual absl::StatusOr<int64_t> Read(char* data, int64_t size) = 0;
};

enum class Compression { kNone, kGzip, kXz, kZstd };

// By the suffix of a name, in any case: .gz and .dz (dictzip) are gzip, .xz,
// .zst.
Compression CompressionOf(absl::string_view name);

// The name without the suffix that CompressionOf recognised.
absl::string_view WithoutCompressionSuffix(absl::string_view name);

// Bytes of `data`, which must outlive the reader.
std::unique_ptr<ByteReader> MakeMemoryReader(absl::string_view data);

// What `input` decompresses to. Several members, streams or frames one after
// the other are one text, as the tools of each format have it. Data that is
// damaged, cut off, or followed by something else is an InvalidArgumentError
// of Read that gives `name` and the offset in the compressed input.
std::unique_ptr<ByteReader> MakeDecompressor(Compression compression,
                                             std::unique_ptr<ByteReader> input,
                                             const std::string& name);

// Opens a regular file and decompresses it by its suffix.
absl::StatusOr<std::unique_ptr<ByteReader>> OpenCompressedFile(
    const std::string& path);

// Everything up to the end; an error that names `name` if it is more than
// `max_bytes`. Memory grows with what was read, never with what is claimed.
absl::StatusOr<std::string> ReadToEnd(ByteReader& reader,
                                      const std::string& name,
                                      int64_t max_bytes);

}  // namespace cubit

#endif  // CUBIT_DATA_COMPRESSED_READER_H_
