// SPDX-License-Identifier: Apache-2.0
//
// Documents out of parquet files with FineWeb's columns, through Apache Arrow.
// One of two implementations is linked: that of a machine with Arrow, and one
// whose every call is an error that says how to get it.

#ifndef CUBIT_DATA_PARQUET_FILE_H_
#define CUBIT_DATA_PARQUET_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "data/text_source.h"

namespace cubit {

// Whether this program was built with Arrow.
bool ParquetIsSupported();

// A run of rows that is read by itself.
struct ParquetGroup {
  int64_t rows = 0;
  int64_t text_bytes = 0;  // of the column, decoded, as the file says
};

// The row groups of `path`, in order; reads the footer alone. Errors
// (InvalidArgument, with the path): not parquet, damaged, no column "text" of
// strings, a "token_count" that is no integer, numbers out of range.
absl::StatusOr<std::vector<ParquetGroup>> ReadParquetGroups(
    const std::string& path);

// Rows of groups [begin, end) as documents; their token_count, where there is
// the column, as stated_tokens(). Null or invalid text is an error that names
// the row. Memory is that of a page of each column, whatever the group's size.
// Groups that do not exist are an error.
absl::StatusOr<std::unique_ptr<TextSource>> OpenParquetGroups(
    const std::string& path, int64_t begin, int64_t end);

}  // namespace cubit

#endif  // CUBIT_DATA_PARQUET_FILE_H_
