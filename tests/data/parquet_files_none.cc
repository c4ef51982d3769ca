// SPDX-License-Identifier: Apache-2.0

#include "runtime/check.h"
#include "tests/data/parquet_files.h"

namespace cubit {

void WriteParquet(const std::string& path, const ParquetRecipe& /*recipe*/) {
  CUBIT_CHECK(false) << path << ": built without Arrow";
}

}  // namespace cubit
