// SPDX-License-Identifier: Apache-2.0
//
// The safetensors file format: 8 bytes little-endian header length N, N bytes
// of JSON, then the tensors one after the other (row-major, little-endian).
// The reader trusts nothing: a file is refused before anything is allocated by
// its word. checkpoint.h builds on this.
//
// Format: https://huggingface.co/docs/safetensors

#ifndef CUBIT_PARALLEL_SAFETENSORS_H_
#define CUBIT_PARALLEL_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "runtime/dtype.h"
#include "runtime/file_system.h"
#include "runtime/tensor.h"

namespace cubit {

// The format's own limit of a header, and ours of a file and a name.
constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;
constexpr int64_t kMaxSafetensorsTensors = 1 << 20;
constexpr int64_t kMaxTensorNameBytes = 512;

// One tensor of a file.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kFloat32;
  Shape shape;
  int64_t offset = 0;  // in the file; set by the parser
  int64_t size_bytes = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // by ascending offset
  std::map<std::string, std::string> metadata;
  std::string json;  // as it stands in the file, padding included

  // Null if there is none of this name.
  const SafetensorsEntry* Find(absl::string_view name) const;
};

// "": fine; else what is wrong with `name`: empty, too long, a control
// character, or a path that leaves its folder ("/x", "a/../b").
std::string TensorNameProblem(absl::string_view name);

// Parses a header (the JSON alone) of a file with `data_bytes` bytes after it.
// Refuses (DataLoss, saying why): malformed or deep JSON, unknown or missing
// keys, duplicate names, unknown dtypes, more than Shape::kMaxRank dims, sizes
// that overflow or differ from the span, spans that overlap, leave holes, or
// do not end with the file. Metadata is string to string.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json,
                                                         int64_t data_bytes);

// Parses a whole file that is in memory.
absl::StatusOr<SafetensorsHeader> ParseSafetensors(absl::string_view file);

// Reads and parses the header of a file; no tensor is read. Errors begin with
// the path.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(
    FileSystem& files, const std::string& path);

// The 8 bytes of length and the JSON for tensors laid out in the given order,
// padded with spaces to a multiple of 8. `offset` and `size_bytes` of the
// entries are ignored. CHECK: names are valid and unique.
std::string SerializeSafetensorsHeader(
    const std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata);

// Writes a file tensor by tensor, so that nothing is gathered in memory.
class SafetensorsWriter {
 public:
  // Creates `path` and writes the header.
  static absl::StatusOr<SafetensorsWriter> Create(
      FileSystem& files, const std::string& path,
      const std::vector<SafetensorsEntry>& entries,
      const std::map<std::string, std::string>& metadata);

  // The next tensor. CHECK: it has the dtype and shape that were announced.
  absl::Status Append(ConstTensor tensor);
  // Makes the file durable. CHECK: every tensor was appended.
  absl::Status Finish();

  int64_t size_bytes() const { return size_bytes_; }
  // Digest of the header, length included (digest.h).
  const std::string& header_xxh3_128() const { return header_xxh3_128_; }

 private:
  SafetensorsWriter(std::unique_ptr<WritableFile> file,
                    std::vector<SafetensorsEntry> entries);

  std::unique_ptr<WritableFile> file_;
  std::vector<SafetensorsEntry> entries_;
  size_t next_ = 0;
  int64_t size_bytes_ = 0;
  std::string header_xxh3_128_;
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_SAFETENSORS_H_
