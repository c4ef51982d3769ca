// SPDX-License-Identifier: Apache-2.0

#include "runtime/file_system.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "runtime/status_macros.h"

namespace cubit {
namespace {

std::string FreeSpace(const std::string& path) {
  struct statvfs info = {};
  if (statvfs(FolderOf(path).c_str(), &info) != 0) return "unknown";
  return absl::StrFormat("%.1f MiB", static_cast<double>(info.f_bavail) *
                                         static_cast<double>(info.f_frsize) /
                                         (1 << 20));
}

absl::Status Error(int code, absl::string_view operation,
                   const std::string& path) {
  const std::string what =
      absl::StrCat(path, ": cannot ", operation, ": ", std::strerror(code));
  switch (code) {
    case ENOENT:
      return absl::NotFoundError(what);
    case EEXIST:
    case EINVAL:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case ENOTDIR:
    case ENOTEMPTY:
      return absl::FailedPreconditionError(what);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(what);
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(
          absl::StrCat(what, " (", FreeSpace(path), " free there)"));
    default:
      return absl::UnavailableError(what);
  }
}

class PosixWritableFile : public WritableFile {
 public:
  PosixWritableFile(int fd, std::string path)
      : fd_(fd), path_(std::move(path)) {}
  ~PosixWritableFile() override {
    if (fd_ >= 0) close(fd_);
  }

  absl::Status Append(const void* data, int64_t bytes) override {
    const char* next = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = write(fd_, next, static_cast<size_t>(bytes));
      if (written < 0) {
        if (errno == EINTR) continue;
        return Error(errno, "write", path_);
      }
      next += written;
      bytes -= written;
    }
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    return fsync(fd_) == 0 ? absl::OkStatus() : Error(errno, "sync", path_);
  }

  absl::Status Close() override {
    const int fd = fd_;
    fd_ = -1;
    return close(fd) == 0 ? absl::OkStatus() : Error(errno, "close", path_);
  }

 private:
  int fd_;
  std::string path_;
};

class PosixFileSystem : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(
      const std::string& path) override {
    const int fd =
        open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return Error(errno, "create", path);
    return std::make_unique<PosixWritableFile>(fd, path);
  }

  absl::Status Read(const std::string& path, int64_t offset, int64_t bytes,
                    void* data) override {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return Error(errno, "open", path);
    absl::Status status = ReadFrom(fd, path, offset, bytes, data);
    close(fd);
    return status;
  }

  absl::StatusOr<int64_t> FileSize(const std::string& path) override {
    struct stat info = {};
    if (stat(path.c_str(), &info) != 0) return Error(errno, "open", path);
    return static_cast<int64_t>(info.st_size);
  }

  bool Exists(const std::string& path) override {
    struct stat info = {};
    return stat(path.c_str(), &info) == 0;
  }

  absl::Status CreateFolders(const std::string& path) override {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    return error ? Error(error.value(), "create folder", path)
                 : absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(
      const std::string& path) override {
    std::error_code error;
    std::filesystem::directory_iterator entry(path, error);
    std::vector<std::string> names;
    // increment, because operator++ would throw.
    for (; !error && entry != std::filesystem::directory_iterator();
         entry.increment(error)) {
      names.push_back(entry->path().filename().string());
    }
    if (error) return Error(error.value(), "list", path);
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    return std::rename(from.c_str(), to.c_str()) == 0
               ? absl::OkStatus()
               : Error(errno, "rename to " + to, from);
  }

  absl::Status Remove(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    return error ? Error(error.value(), "remove", path) : absl::OkStatus();
  }

  absl::Status SyncFolder(const std::string& path) override {
    const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return Error(errno, "open folder", path);
    const int result = fsync(fd);
    const int code = errno;
    close(fd);
    return result == 0 ? absl::OkStatus() : Error(code, "sync folder", path);
  }

 private:
  static absl::Status ReadFrom(int fd, const std::string& path, int64_t offset,
                               int64_t bytes, void* data) {
    char* next = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t got = pread(fd, next, static_cast<size_t>(bytes), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Error(errno, "read", path);
      if (got == 0) {
        return absl::DataLossError(absl::StrCat(
            path, ": ends ", bytes, " bytes early, at offset ", offset));
      }
      next += got;
      offset += got;
      bytes -= got;
    }
    return absl::OkStatus();
  }
};

absl::Status WriteDurably(WritableFile& file, absl::string_view contents) {
  CUBIT_RETURN_IF_ERROR(
      file.Append(contents.data(), static_cast<int64_t>(contents.size())));
  CUBIT_RETURN_IF_ERROR(file.Sync());
  return file.Close();
}

}  // namespace

FileSystem& FileSystem::Posix() {
  static PosixFileSystem* const files = new PosixFileSystem;
  return *files;
}

absl::StatusOr<std::string> ReadFile(FileSystem& files, const std::string& path,
                                     int64_t max_bytes) {
  CUBIT_ASSIGN_OR_RETURN(const int64_t size, files.FileSize(path));
  if (size > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": has ", size, " bytes, at most ", max_bytes, " are accepted"));
  }
  std::string contents(static_cast<size_t>(size), '\0');
  CUBIT_RETURN_IF_ERROR(files.Read(path, 0, size, contents.data()));
  return contents;
}

absl::Status WriteFileAtomically(FileSystem& files, const std::string& path,
                                 absl::string_view contents) {
  const std::string temporary = path + ".tmp";
  CUBIT_ASSIGN_OR_RETURN(auto file, files.Create(temporary));
  absl::Status status = WriteDurably(*file, contents);
  if (status.ok()) status = files.Rename(temporary, path);
  if (!status.ok()) {
    files.Remove(temporary).IgnoreError();  // the first error is the one
    return status;
  }
  return files.SyncFolder(FolderOf(path));
}

std::string JoinPath(absl::string_view folder, absl::string_view name) {
  if (folder.empty() || (!name.empty() && name.front() == '/')) {
    return std::string(name);
  }
  return absl::StrCat(folder, folder.back() == '/' ? "" : "/", name);
}

std::string FolderOf(absl::string_view path) {
  const size_t slash = path.rfind('/');
  if (slash == absl::string_view::npos) return ".";
  return slash == 0 ? "/" : std::string(path.substr(0, slash));
}

}  // namespace cubit
