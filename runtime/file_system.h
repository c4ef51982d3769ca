// SPDX-License-Identifier: Apache-2.0
//
// The few file operations that durable writers need (checkpoints, shards), as
// an interface so that tests can make the n-th call fail. Every error names the
// path, the operation and the system's reason; "no space" also says how much
// is free.

#ifndef CUBIT_RUNTIME_FILE_SYSTEM_H_
#define CUBIT_RUNTIME_FILE_SYSTEM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cubit {

// A file being written from its beginning. Destroying it without Close leaves
// whatever was written.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual absl::Status Append(const void* data, int64_t bytes) = 0;
  // Makes the contents durable (fsync).
  virtual absl::Status Sync() = 0;
  virtual absl::Status Close() = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // The operating system's files.
  static FileSystem& Posix();

  // Creates or truncates.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Create(
      const std::string& path) = 0;
  // Reads `bytes` from `offset`; short files are errors.
  virtual absl::Status Read(const std::string& path, int64_t offset,
                            int64_t bytes, void* data) = 0;
  virtual absl::StatusOr<int64_t> FileSize(const std::string& path) = 0;
  virtual bool Exists(const std::string& path) = 0;
  // Creates the folder and its parents; fine if it exists.
  virtual absl::Status CreateFolders(const std::string& path) = 0;
  // Names (not paths) in a folder, sorted.
  virtual absl::StatusOr<std::vector<std::string>> List(
      const std::string& path) = 0;
  // Atomic; replaces an existing file.
  virtual absl::Status Rename(const std::string& from,
                              const std::string& to) = 0;
  // Removes a file, or a folder with everything in it.
  virtual absl::Status Remove(const std::string& path) = 0;
  // Makes the names in a folder durable (fsync of the folder).
  virtual absl::Status SyncFolder(const std::string& path) = 0;
};

// The whole file; an error if it is larger than `max_bytes`.
absl::StatusOr<std::string> ReadFile(FileSystem& files, const std::string& path,
                                     int64_t max_bytes);

// Writes `path` so that a reader sees the old or the new contents, whole:
// temporary file `path`.tmp, fsync, rename, fsync of the folder. A failure
// leaves the old contents, and no temporary file if that can still be removed.
absl::Status WriteFileAtomically(FileSystem& files, const std::string& path,
                                 absl::string_view contents);

// "a/b" from "a" and "b"; an absolute `name` stands alone.
std::string JoinPath(absl::string_view folder, absl::string_view name);
// The folder of a path, "." if it has none.
std::string FolderOf(absl::string_view path);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_FILE_SYSTEM_H_
