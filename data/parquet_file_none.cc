// SPDX-License-Identifier: Apache-2.0

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "data/parquet_file.h"

namespace cubit {
namespace {

absl::Status Missing(const std::string& path) {
  return absl::FailedPreconditionError(absl::StrCat(
      path,
      ": is a parquet file, and this program was built without Apache Arrow, "
      "which reads them. Install it with ./bazelw install_arrow, then run the "
      "same command through ./bazelw"));
}

}  // namespace

bool ParquetIsSupported() { return false; }

absl::StatusOr<std::vector<ParquetGroup>> ReadParquetGroups(
    const std::string& path) {
  return Missing(path);
}

absl::StatusOr<std::unique_ptr<TextSource>> OpenParquetGroups(
    const std::string& path, int64_t /*begin*/, int64_t /*end*/) {
  return Missing(path);
}

}  // namespace cubit
