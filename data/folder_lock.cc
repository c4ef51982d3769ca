// SPDX-License-Identifier: Apache-2.0

#include "data/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

#include "runtime/check.h"
#include "runtime/logging.h"

namespace cubit {

FolderLock::~FolderLock() {
  if (fd_ >= 0) close(fd_);
}

absl::Status FolderLock::Lock(const std::string& folder, bool wait) {
  CUBIT_CHECK_EQ(fd_, -1);
  fd_ = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd_ >= 0 && flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    if (wait) {
      LogInfo(absl::StrCat(folder, ": waiting for another preparation of it"));
      if (flock(fd_, LOCK_EX) == 0 || errno != EINTR) return absl::OkStatus();
      return absl::CancelledError(absl::StrCat(
          folder, ": interrupted while waiting for another preparation"));
    }
    return absl::FailedPreconditionError(
        absl::StrCat(folder,
                     ": another preparation is writing there; wait for it or "
                     "choose another --out"));
  }
  return absl::OkStatus();
}

}  // namespace cubit
