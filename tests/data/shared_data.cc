// SPDX-License-Identifier: Apache-2.0

#include "tests/data/shared_data.h"

#include <cstdlib>

#include "absl/strings/str_split.h"

#include "data/compressed_reader.h"
#include "runtime/file_system.h"

namespace cubit {
namespace {

std::string SharedFolder() {
  const char* folder = std::getenv("CUBIT_SHARED");
  return folder == nullptr ? "" : folder;
}

}  // namespace

bool HasSharedData() { return !SharedFolder().empty(); }

std::string SharedPath(const std::string& name) {
  return JoinPath(JoinPath(SharedFolder(), "data"), name);
}

std::string ReadSharedFile(const std::string& name) {
  constexpr int64_t kMaxBytes = 256 << 20;
  const std::string path = SharedPath(name);
  auto reader = OpenCompressedFile(path);
  if (!reader.ok()) {
    ADD_FAILURE() << reader.status();
    return "";
  }
  auto contents = ReadToEnd(**reader, path, kMaxBytes);
  if (!contents.ok()) {
    ADD_FAILURE() << contents.status();
    return "";
  }
  return *std::move(contents);
}

std::vector<std::string> ReadSharedLines(const std::string& name) {
  return absl::StrSplit(ReadSharedFile(name), '\n', absl::SkipEmpty());
}

}  // namespace cubit
