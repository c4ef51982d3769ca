// SPDX-License-Identifier: Apache-2.0

#include "tests/testing/program.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/file_system.h"

namespace cubit {
namespace testing {
namespace {

constexpr int64_t kMaxOutputBytes = 64 << 20;

// A file that is gone when this is.
class TemporaryFile {
 public:
  TemporaryFile() : path_(::testing::TempDir() + "/program_XXXXXX") {
    const int fd = mkstemp(path_.data());
    CUBIT_CHECK_GE(fd, 0) << path_ << ": " << std::strerror(errno);
    close(fd);
  }
  ~TemporaryFile() { unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }
  std::string Contents() const {
    auto contents = ReadFile(FileSystem::Posix(), path_, kMaxOutputBytes);
    CUBIT_CHECK_OK(contents);
    return *contents;
  }

 private:
  std::string path_;
};

// The null-terminated array that exec wants.
std::vector<char*> Pointers(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (const std::string& word : words) {
    pointers.push_back(const_cast<char*>(word.c_str()));
  }
  pointers.push_back(nullptr);
  return pointers;
}

int ExitStatusOf(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    CUBIT_CHECK_EQ(errno, EINTR);
  }
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

ProgramResult RunProgram(const std::vector<std::string>& arguments,
                         const std::vector<std::string>& environment) {
  const TemporaryFile output;
  const TemporaryFile errors;
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, output.path().c_str(), O_WRONLY,
                                   0);
  posix_spawn_file_actions_addopen(&files, 2, errors.path().c_str(), O_WRONLY,
                                   0);
  // The first of two equal names counts.
  std::vector<std::string> variables = environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    variables.emplace_back(*entry);
  }
  pid_t child = 0;
  const int code =
      posix_spawn(&child, arguments[0].c_str(), &files, nullptr,
                  Pointers(arguments).data(), Pointers(variables).data());
  posix_spawn_file_actions_destroy(&files);
  CUBIT_CHECK_EQ(code, 0) << arguments[0] << ": " << std::strerror(code);
  ProgramResult result;
  result.exit_status = ExitStatusOf(child);
  result.output = output.Contents();
  result.errors = errors.Contents();
  return result;
}

}  // namespace testing
}  // namespace cubit
