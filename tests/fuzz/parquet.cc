// SPDX-License-Identifier: Apache-2.0
//
// A parquet file out of bytes: its groups, then its documents. What our reader
// does in a process of its own happens here in this one.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

#include "data/parquet_file.h"
#include "data/utf8.h"
#include "runtime/check.h"

namespace cubit {
namespace {

// A file in memory that the reader finds by a path.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size)
      : fd_(memfd_create("parquet", MFD_CLOEXEC)) {
    CUBIT_CHECK_GE(fd_, 0);
    CUBIT_CHECK_EQ(pwrite(fd_, data, size, 0), static_cast<ssize_t>(size));
  }
  ~MemoryFile() { close(fd_); }
  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_); }

 private:
  const int fd_;
};

void ReadDocuments(const std::string& path) {
  const auto groups = ReadParquetGroups(path);
  if (!groups.ok()) {
    CUBIT_CHECK(!groups.status().message().empty());
    return;
  }
  for (const ParquetGroup& group : *groups) {
    CUBIT_CHECK(group.rows >= 0 && group.text_bytes >= 0);
  }
  auto source =
      OpenParquetGroups(path, 0, static_cast<int64_t>(groups->size()));
  if (!source.ok()) return;
  constexpr int kDocuments = 1000;
  std::string text;
  for (int i = 0; i < kDocuments; ++i) {
    const auto more = (*source)->Next(&text);
    if (!more.ok() || !*more) return;
    CUBIT_CHECK(!text.empty());
    CUBIT_CHECK_EQ(ValidUtf8Prefix(text), static_cast<int64_t>(text.size()));
  }
}

}  // namespace
}  // namespace cubit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const cubit::MemoryFile file(data, size);
  cubit::ReadDocuments(file.path());
  return 0;
}
