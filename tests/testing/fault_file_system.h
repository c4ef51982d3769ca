// SPDX-License-Identifier: Apache-2.0
//
// A file system that fails on request, for writers that must leave the old or
// the new contents whole: run the writer with the call 1, 2, 3, ... failing
// until a run completes, and check after each what a reader finds.
//
//   for (int64_t n = 1;; ++n) {
//     FaultFileSystem files(&FileSystem::Posix(), {.fail_at = n});
//     const absl::Status status = Write(files, path);
//     ... check what is at `path` ...
//     if (!files.fault_happened()) break;  // n is past the last call
//   }

#ifndef CUBIT_TESTS_TESTING_FAULT_FILE_SYSTEM_H_
#define CUBIT_TESTS_TESTING_FAULT_FILE_SYSTEM_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

#include "runtime/file_system.h"

namespace cubit {

struct FaultPlan {
  enum class Calls {
    kMutating,  // Create, Append, Sync, Close, CreateFolders, Rename, Remove,
                // SyncFolder
    kAll,       // these and Read, FileSize, List (Exists cannot fail)
  };

  // Which counted call fails, from 1; 0 fails none.
  int64_t fail_at = 0;
  Calls calls = Calls::kMutating;
  // What the failed call returns; the path and operation are added.
  absl::Status error = absl::ResourceExhaustedError("injected fault");
  // As if the machine stopped in that call: every later call of any kind fails
  // too, and what had not been synced is lost (files are cut to what Sync has
  // seen). Otherwise only that call fails.
  bool crash = false;
  // Whether a failing Append writes the first half of its bytes, as a full disk
  // does.
  bool torn_append = true;
};

// Thread-safe. Outlives the files it created. Sync and SyncFolder are counted
// and remembered for crashes, not passed on: tests need not survive a power
// cut, and thousands of real ones would take minutes.
class FaultFileSystem : public FileSystem {
 public:
  // `base` must outlive this.
  FaultFileSystem(FileSystem* base, FaultPlan plan);
  ~FaultFileSystem() override;

  // Calls counted so far, the failing one included.
  int64_t calls() const;
  // Whether the planned fault was reached.
  bool fault_happened() const;
  // "append /path/to/file"; empty before the fault.
  std::string failed_call() const;

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(
      const std::string& path) override;
  absl::Status Read(const std::string& path, int64_t offset, int64_t bytes,
                    void* data) override;
  absl::StatusOr<int64_t> FileSize(const std::string& path) override;
  bool Exists(const std::string& path) override;
  absl::Status CreateFolders(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(
      const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::Status SyncFolder(const std::string& path) override;

 private:
  friend class FaultWritableFile;
  struct Written {
    int64_t bytes = 0;
    int64_t synced_bytes = 0;
  };

  // Counts a call; the error it must return, if any.
  absl::Status Count(bool mutating, const std::string& operation,
                     const std::string& path);
  absl::Status AppendTo(WritableFile& file, const std::string& path,
                        const void* data, int64_t bytes);
  absl::Status SyncOf(const std::string& path);
  absl::Status CloseOf(WritableFile& file, const std::string& path);
  // Cuts every file to what was synced.
  void LoseUnsynced() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  FileSystem* const base_;
  const FaultPlan plan_;
  mutable absl::Mutex mutex_;
  int64_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string failed_call_ ABSL_GUARDED_BY(mutex_);
  // Files written through this, by their present path.
  std::map<std::string, Written> written_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace cubit

#endif  // CUBIT_TESTS_TESTING_FAULT_FILE_SYSTEM_H_
