// SPDX-License-Identifier: Apache-2.0

#include "tests/testing/program.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/file_system.h"

namespace cubit {
namespace testing {
namespace {

constexpr int64_t kMaxOutputBytes = 64 << 20;

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

std::string NewFile() {
  std::string path = ::testing::TempDir() + "/program_XXXXXX";
  const int fd = mkstemp(path.data());
  CUBIT_CHECK_GE(fd, 0) << path << ": " << std::strerror(errno);
  close(fd);
  return path;
}

}  // namespace

Program::Program(const std::vector<std::string>& arguments,
                 const std::vector<std::string>& environment)
    : output_path_(NewFile()) {
  int ends[2];
  CUBIT_CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
  errors_fd_ = ends[0];
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, output_path_.c_str(), O_WRONLY,
                                   0);
  posix_spawn_file_actions_adddup2(&files, ends[1], 2);
  // The first of two equal names counts.
  std::vector<std::string> variables = environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    variables.emplace_back(*entry);
  }
  const int code =
      posix_spawn(&pid_, arguments[0].c_str(), &files, nullptr,
                  Pointers(arguments).data(), Pointers(variables).data());
  posix_spawn_file_actions_destroy(&files);
  close(ends[1]);
  CUBIT_CHECK_EQ(code, 0) << arguments[0] << ": " << std::strerror(code);
}

Program::~Program() {
  close(errors_fd_);
  unlink(output_path_.c_str());
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Program::Signal(int signal) { CUBIT_CHECK_EQ(kill(pid_, signal), 0); }

bool Program::ReadErrors() {
  char buffer[4096];
  ssize_t count = -1;
  do {
    count = read(errors_fd_, buffer, sizeof(buffer));
  } while (count < 0 && errno == EINTR);
  if (count <= 0) return false;
  errors_.append(buffer, static_cast<size_t>(count));
  return true;
}

bool Program::WaitForError(const std::string& text) {
  while (errors_.find(text) == std::string::npos) {
    if (!ReadErrors()) return false;
  }
  return true;
}

ProgramResult Program::Wait() {
  while (ReadErrors()) {
  }
  ProgramResult result;
  result.exit_status = ExitStatusOf(pid_);
  pid_ = -1;
  result.output = ReadText(output_path_);
  result.errors = errors_;
  return result;
}

ProgramResult RunProgram(const std::vector<std::string>& arguments,
                         const std::vector<std::string>& environment) {
  return Program(arguments, environment).Wait();
}

std::vector<std::string> UserCommand(
    const std::string& program, const std::vector<std::string>& arguments) {
  // The programs move to where the user stands, so the path is absolute.
  std::vector<std::string> words = {
      std::filesystem::absolute(program).string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

std::vector<std::string> UserEnvironment(const std::string& home) {
  return {"HOME=" + home, "XDG_CACHE_HOME=" + home + "/cache",
          "BUILD_WORKING_DIRECTORY=" + home};
}

Outcome OutcomeOf(const ProgramResult& result) {
  return {result.exit_status, result.output + result.errors};
}

Outcome RunAsUser(const std::string& program,
                  const std::vector<std::string>& arguments,
                  const std::string& home) {
  return OutcomeOf(
      RunProgram(UserCommand(program, arguments), UserEnvironment(home)));
}

std::string NewFolder() {
  std::string folder =
      (std::filesystem::path(::testing::TempDir()) / "folder_XXXXXX")
          .lexically_normal()
          .string();
  CUBIT_CHECK(mkdtemp(folder.data()) != nullptr) << folder;
  return folder;
}

void WriteText(const std::string& path, const std::string& contents) {
  std::ofstream file(path, std::ios::binary);
  file << contents;
  file.close();
  CUBIT_CHECK(file.good()) << path;
}

std::string ReadText(const std::string& path) {
  auto contents = ReadFile(FileSystem::Posix(), path, kMaxOutputBytes);
  CUBIT_CHECK_OK(contents);
  return *std::move(contents);
}

}  // namespace testing
}  // namespace cubit
