// SPDX-License-Identifier: Apache-2.0

#include "tests/benchmarks/results.h"

#include "runtime/file_system.h"

namespace cubit {

absl::Status WriteJson(const std::string& path, const nlohmann::json& results) {
  if (path.empty()) return absl::OkStatus();
  return WriteFileAtomically(FileSystem::Posix(), path, results.dump(2) + "\n");
}

}  // namespace cubit
