// SPDX-License-Identifier: Apache-2.0
//
// The folder of one run: made, tried for writing, and locked against a second
// run before any work is done. What is in it: docs/quickstart.md.

#ifndef CUBIT_LAUNCH_RUN_DIRECTORY_H_
#define CUBIT_LAUNCH_RUN_DIRECTORY_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "runtime/file_system.h"

namespace cubit {

// Holds the lock of its folder while it lives. Move-only.
//
// The lock is the file run.lock with host, pid and start time of its holder,
// under an advisory lock of the system. A lock whose process has died on this
// host is taken over with a note in the log; one of another host is believed.
class RunDirectory {
 public:
  // Creates the folder if need be. Errors, all before anything is changed:
  // PermissionDenied (or what the system says) if a file cannot be written
  // there; FailedPrecondition if another process holds the lock; if the folder
  // holds a run and `resume` is false; if it holds none and `resume` is true.
  static absl::StatusOr<RunDirectory> Open(FileSystem& files,
                                           const std::string& path,
                                           bool resume);
  // A folder that another process of the same run has opened; holds no lock.
  static RunDirectory OfAnother(std::string path);
  // Gives the lock back.
  ~RunDirectory();
  RunDirectory(RunDirectory&& other) noexcept;
  RunDirectory& operator=(RunDirectory&& other) noexcept;
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string config_path() const;       // config.textproto
  std::string metrics_path() const;      // metrics.jsonl
  std::string checkpoints_path() const;  // checkpoints
  std::string log_path() const;          // log.txt

 private:
  RunDirectory(std::string path, int lock_fd)
      : path_(std::move(path)), lock_fd_(lock_fd) {}

  std::string path_;
  int lock_fd_ = -1;
};

}  // namespace cubit

#endif  // CUBIT_LAUNCH_RUN_DIRECTORY_H_
