// SPDX-License-Identifier: Apache-2.0
//
// Keeps a second program out of a folder that one is writing.

#ifndef CUBIT_DATA_FOLDER_LOCK_H_
#define CUBIT_DATA_FOLDER_LOCK_H_

#include <string>

#include "absl/status/status.h"

namespace cubit {

// Held until destroyed. The lock is the kernel's and leaves no file: it ends
// with the program, however that ends.
class FolderLock {
 public:
  FolderLock() = default;
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  // FailedPrecondition if another holds it, unless `wait`: then returns once
  // that one has ended, or Cancelled if a signal came first. OK also where the
  // file system has no locks. At most once.
  absl::Status Lock(const std::string& folder, bool wait);

 private:
  int fd_ = -1;
};

}  // namespace cubit

#endif  // CUBIT_DATA_FOLDER_LOCK_H_
