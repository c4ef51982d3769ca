// SPDX-License-Identifier: Apache-2.0
//
// Whole safetensors files. What is accepted must lie within the file, tensor
// behind tensor, and its header must survive being written and read again.

#include "parallel/safetensors.h"

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "runtime/check.h"

namespace cubit {
namespace {

constexpr int64_t kLengthBytes = 8;

// Bytes from the first tensor on.
int64_t CheckSpans(const SafetensorsHeader& header) {
  int64_t bytes = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    CUBIT_CHECK(TensorNameProblem(entry.name).empty());
    CUBIT_CHECK(header.Find(entry.name) != nullptr);
    CUBIT_CHECK_GE(entry.size_bytes, 0);
    CUBIT_CHECK_EQ(entry.shape.num_elements() * SizeOf(entry.dtype),
                   entry.size_bytes);
    CUBIT_CHECK_EQ(entry.offset - header.entries[0].offset, bytes);
    bytes += entry.size_bytes;
  }
  return bytes;
}

void ParseAndWrite(absl::string_view file) {
  const absl::StatusOr<SafetensorsHeader> header = ParseSafetensors(file);
  if (!header.ok()) {
    CUBIT_CHECK(!header.status().message().empty());
    return;
  }
  const int64_t bytes = CheckSpans(*header);
  CUBIT_CHECK_EQ(
      kLengthBytes + static_cast<int64_t>(header->json.size()) + bytes,
      static_cast<int64_t>(file.size()));
  const std::string written =
      SerializeSafetensorsHeader(header->entries, header->metadata);
  const absl::StatusOr<SafetensorsHeader> again = ParseSafetensorsHeader(
      absl::string_view(written).substr(kLengthBytes), bytes);
  CUBIT_CHECK(again.ok()) << again.status();
  CUBIT_CHECK(again->metadata == header->metadata);
  CUBIT_CHECK_EQ(again->entries.size(), header->entries.size());
  for (size_t i = 0; i < header->entries.size(); ++i) {
    CUBIT_CHECK_EQ(again->entries[i].name, header->entries[i].name);
    CUBIT_CHECK(again->entries[i].shape == header->entries[i].shape);
  }
}

}  // namespace
}  // namespace cubit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  cubit::ParseAndWrite({reinterpret_cast<const char*>(data), size});
  return 0;
}
