// SPDX-License-Identifier: Apache-2.0
//
// Parquet files for tests, where the program was built with Arrow.

#ifndef CUBIT_TESTS_DATA_PARQUET_FILES_H_
#define CUBIT_TESTS_DATA_PARQUET_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

namespace cubit {

struct ParquetRow {
  std::string text;
  int64_t token_count = 0;
  bool is_null = false;  // the text
};

struct ParquetRecipe {
  std::vector<ParquetRow> rows;
  int64_t group_rows = 1 << 20;  // rows of a group at most
  bool compressed = true;        // zstd
  bool dictionary = true;
  // FineWeb-Edu's other columns besides, which are not read.
  bool all_columns = true;
  // Otherwise than FineWeb's:
  std::string text_name = "text";
  bool text_is_integer = false;
  bool text_is_repeated = false;
  bool text_is_nullable = true;
  bool has_count = true;
  bool count_is_int32 = false;
  bool count_is_text = false;
};

// CHECK-fails where Arrow is missing (ParquetIsSupported).
void WriteParquet(const std::string& path, const ParquetRecipe& recipe);

}  // namespace cubit

#endif  // CUBIT_TESTS_DATA_PARQUET_FILES_H_
