// SPDX-License-Identifier: Apache-2.0
//
// Compressed forms of texts, and files that hold them, for tests.

#ifndef CUBIT_TESTS_DATA_COMPRESS_H_
#define CUBIT_TESTS_DATA_COMPRESS_H_

#include <string>

#include "absl/strings/string_view.h"

#include "data/compressed_reader.h"

namespace cubit {

// `text` as one gzip member, xz stream or Zstandard frame, with a checksum; as
// it is for kNone.
std::string Compress(Compression compression, absl::string_view text);

// Writes a file below the test's temporary folder, folders included, and
// returns its path.
std::string WriteTestFile(const std::string& name, absl::string_view contents);

}  // namespace cubit

#endif  // CUBIT_TESTS_DATA_COMPRESS_H_
