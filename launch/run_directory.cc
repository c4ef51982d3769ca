// SPDX-License-Identifier: Apache-2.0

#include "launch/run_directory.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "runtime/host_name.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr char kLockName[] = "run.lock";
constexpr int64_t kMaxLockBytes = 4096;

// Who holds a lock, as the file says.
struct Holder {
  std::string host;
  int64_t pid = 0;
  std::string started;      // of the run, for people
  int64_t start_ticks = 0;  // of the process: a pid is used again, this is not

  std::string ToString() const {
    return absl::StrCat("process ", pid, " on ", host, ", since ", started);
  }
};

// When a process started, in the kernel's ticks since boot; -1 if there is no
// such process or the system does not say.
int64_t StartTicks(int64_t pid) {
  char text[1024] = {};
  const int fd =
      open(absl::StrCat("/proc/", pid, "/stat").c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  const ssize_t bytes = read(fd, text, sizeof(text) - 1);
  close(fd);
  if (bytes <= 0) return -1;
  // "pid (name) state ...": the name may hold anything; the start is field 22.
  const absl::string_view line(text, static_cast<size_t>(bytes));
  const size_t name_end = line.rfind(')');
  if (name_end == absl::string_view::npos) return -1;
  const std::vector<absl::string_view> fields =
      absl::StrSplit(line.substr(name_end + 2), ' ');
  int64_t ticks = -1;
  if (fields.size() < 20 || !absl::SimpleAtoi(fields[19], &ticks)) return -1;
  return ticks;
}

Holder Myself() {
  Holder holder;
  holder.host = HostName();
  holder.pid = getpid();
  holder.started =
      absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
  holder.start_ticks = StartTicks(holder.pid);
  return holder;
}

std::string ToText(const Holder& holder) {
  return absl::StrCat("host ", holder.host, "\npid ", holder.pid, "\nstarted ",
                      holder.started, "\nprocess_start_ticks ",
                      holder.start_ticks, "\n");
}

// Empty if the text is no lock's (its writer died early).
Holder FromText(absl::string_view text) {
  Holder holder;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (parts.first == "host") holder.host = std::string(parts.second);
    if (parts.first == "started") holder.started = std::string(parts.second);
    int64_t* number = parts.first == "pid" ? &holder.pid
                      : parts.first == "process_start_ticks"
                          ? &holder.start_ticks
                          : nullptr;
    if (number != nullptr && !absl::SimpleAtoi(parts.second, number)) {
      return Holder();
    }
  }
  return holder.host.empty() || holder.pid <= 0 ? Holder() : holder;
}

// Whether the process that wrote the lock still runs, as far as this host can
// tell.
bool IsAlive(const Holder& holder) {
  if (holder.host != HostName()) return true;
  if (kill(static_cast<pid_t>(holder.pid), 0) != 0 && errno == ESRCH) {
    return false;
  }
  const int64_t ticks = StartTicks(holder.pid);
  return ticks < 0 || holder.start_ticks < 0 || ticks == holder.start_ticks;
}

absl::Status SystemError(const std::string& path, absl::string_view operation) {
  return absl::UnavailableError(
      absl::StrCat(path, ": cannot ", operation, ": ", std::strerror(errno)));
}

absl::Status Held(const std::string& path, const Holder& holder) {
  std::string advice = "Wait for it, or give another --output_dir";
  if (holder.host != HostName()) {
    absl::StrAppend(&advice, ". If that run is certainly dead, delete ", path);
  }
  return absl::FailedPreconditionError(absl::StrCat(
      FolderOf(path), ": is in use by ",
      holder.host.empty() ? "another run" : holder.ToString(), ". ", advice));
}

std::string ReadAll(int fd) {
  std::string text(kMaxLockBytes, '\0');
  const ssize_t bytes = pread(fd, text.data(), text.size(), 0);
  text.resize(bytes > 0 ? static_cast<size_t>(bytes) : 0);
  return text;
}

absl::Status WriteHolder(int fd, const std::string& path) {
  const std::string text = ToText(Myself());
  if (ftruncate(fd, 0) != 0 ||
      pwrite(fd, text.data(), text.size(), 0) !=
          static_cast<ssize_t>(text.size()) ||
      fsync(fd) != 0) {
    return SystemError(path, "write");
  }
  return absl::OkStatus();
}

// Whether the open file is still the one of this name: its holder removes it
// when it ends, perhaps just after we opened it.
bool IsStillThere(int fd, const std::string& path) {
  struct stat opened = {};
  struct stat named = {};
  return fstat(fd, &opened) == 0 && stat(path.c_str(), &named) == 0 &&
         opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
}

// Decides over an open lock file, which the system's lock guards meanwhile.
absl::Status TakeOver(int fd, const std::string& path) {
  if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    return Held(path, FromText(ReadAll(fd)));
  }
  // Where the file system has no such locks, the text alone decides.
  const Holder holder = FromText(ReadAll(fd));
  if (!holder.host.empty()) {
    if (IsAlive(holder)) return Held(path, holder);
    LogInfo(absl::StrCat(path, ": taken over from ", holder.ToString(),
                         ", which has ended without giving it back"));
  }
  return WriteHolder(fd, path);
}

absl::StatusOr<int> Lock(const std::string& path) {
  for (;;) {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return SystemError(path, "open");
    const absl::Status status = TakeOver(fd, path);
    if (status.ok() && IsStillThere(fd, path)) return fd;
    close(fd);
    if (!status.ok()) return status;
  }
}

// Writes, syncs and removes a small file.
absl::Status ProbeWrite(FileSystem& files, const std::string& folder) {
  const std::string path = JoinPath(folder, ".write_probe");
  CUBIT_RETURN_IF_ERROR(WriteFileAtomically(files, path, "probe\n"));
  return files.Remove(path);
}

absl::Status MakeWritable(FileSystem& files, const std::string& path) {
  absl::Status status = files.CreateFolders(path);
  if (status.ok()) status = ProbeWrite(files, path);
  if (status.ok()) return status;
  return absl::Status(
      status.code(),
      absl::StrCat("the run cannot be written to ", path, ": ",
                   status.message(),
                   ". Make room or give a writable folder by --output_dir"));
}

// The files of a run that is there already.
std::vector<std::string> FilesOfARun(FileSystem& files,
                                     const std::string& path) {
  std::vector<std::string> found;
  for (const char* name : {"metrics.jsonl", "checkpoints"}) {
    if (files.Exists(JoinPath(path, name))) found.push_back(name);
  }
  return found;
}

absl::Status CheckResumable(FileSystem& files, const std::string& path) {
  if (!FilesOfARun(files, path).empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(path,
                   ": there is no run to resume. Start one without --resume, "
                   "or give the folder of a run by --output_dir"));
}

absl::Status CheckFresh(FileSystem& files, const std::string& path) {
  const std::vector<std::string> found = FilesOfARun(files, path);
  if (found.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      path, ": holds a run already (", absl::StrJoin(found, ", "),
      "). Continue it with --resume, or give another --output_dir"));
}

}  // namespace

absl::StatusOr<RunDirectory> RunDirectory::Open(FileSystem& files,
                                                const std::string& path,
                                                bool resume) {
  // Before a folder is made for nothing.
  if (resume) CUBIT_RETURN_IF_ERROR(CheckResumable(files, path));
  CUBIT_RETURN_IF_ERROR(MakeWritable(files, path));
  CUBIT_ASSIGN_OR_RETURN(const int fd, Lock(JoinPath(path, kLockName)));
  RunDirectory directory(path, fd);
  // A run that is going on is named before its files are complained of.
  if (!resume) CUBIT_RETURN_IF_ERROR(CheckFresh(files, path));
  return directory;
}

RunDirectory RunDirectory::OfAnother(std::string path) {
  return RunDirectory(std::move(path), /*lock_fd=*/-1);
}

RunDirectory::~RunDirectory() {
  if (lock_fd_ < 0) return;
  // Removed while the lock is held, so that no other holder's file goes.
  unlink(JoinPath(path_, kLockName).c_str());
  close(lock_fd_);
}

RunDirectory::RunDirectory(RunDirectory&& other) noexcept
    : path_(std::move(other.path_)),
      lock_fd_(std::exchange(other.lock_fd_, -1)) {}

RunDirectory& RunDirectory::operator=(RunDirectory&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(lock_fd_, other.lock_fd_);
  return *this;
}

std::string RunDirectory::config_path() const {
  return JoinPath(path_, "config.textproto");
}
std::string RunDirectory::metrics_path() const {
  return JoinPath(path_, "metrics.jsonl");
}
std::string RunDirectory::checkpoints_path() const {
  return JoinPath(path_, "checkpoints");
}
std::string RunDirectory::log_path() const {
  return JoinPath(path_, "log.txt");
}

}  // namespace cubit
