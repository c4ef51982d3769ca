// SPDX-License-Identifier: Apache-2.0
//
// A token shard out of bytes: opened, read in part and verified.

#include "data/token_shard.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

#include "runtime/check.h"

namespace cubit {
namespace {

// A file in memory that the reader finds by a path.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size)
      : fd_(memfd_create("shard", MFD_CLOEXEC)) {
    CUBIT_CHECK_GE(fd_, 0);
    CUBIT_CHECK_EQ(pwrite(fd_, data, size, 0), static_cast<ssize_t>(size));
  }
  ~MemoryFile() { close(fd_); }
  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_); }

 private:
  const int fd_;
};

void OpenAndRead(const std::string& path) {
  auto shard = TokenShard::Open(path, 0);
  if (!shard.ok()) {
    CUBIT_CHECK(!shard.status().message().empty());
    return;
  }
  const int64_t count = std::min<int64_t>(shard->info().num_tokens, 100);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  if (shard->ReadTokens(0, count, tokens.data()).ok()) {
    for (const int32_t id : tokens) {
      CUBIT_CHECK(id >= 0 && id < shard->info().vocab_size);
    }
  }
  shard->DocumentRange(shard->info().num_documents - 1).status().IgnoreError();
  // Holes read as zeros and cost time alone; a real shard has none so large.
  if (shard->info().num_tokens < 1 << 22) shard->Verify().IgnoreError();
}

}  // namespace
}  // namespace cubit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const cubit::MemoryFile file(data, size);
  cubit::OpenAndRead(file.path());
  return 0;
}
