// SPDX-License-Identifier: Apache-2.0

#include "tests/testing/program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "runtime/check.h"

namespace cubit {
namespace testing {
namespace {

// In the child: nothing here may fail silently.
[[noreturn]] void Execute(const std::string& path,
                          const std::vector<std::string>& arguments,
                          const std::string& home, int output) {
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  const int nothing = open("/dev/null", O_RDONLY);
  dup2(nothing, STDIN_FILENO);
  setenv("HOME", home.c_str(), 1);
  unsetenv("XDG_CACHE_HOME");
  unsetenv("BUILD_WORKING_DIRECTORY");
  std::vector<char*> argv = {const_cast<char*>(path.c_str())};
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  execv(path.c_str(), argv.data());
  _exit(127);
}

}  // namespace

Program::Program(const std::string& path,
                 const std::vector<std::string>& arguments,
                 const std::string& home) {
  int ends[2];
  CUBIT_CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
  pid_ = fork();
  CUBIT_CHECK_GE(pid_, 0);
  if (pid_ == 0) Execute(path, arguments, home, ends[1]);
  close(ends[1]);
  fd_ = ends[0];
}

Program::~Program() {
  if (fd_ >= 0) close(fd_);
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
}

void Program::Signal(int signal) { CUBIT_CHECK_EQ(kill(pid_, signal), 0); }

bool Program::ReadSome() {
  char buffer[4096];
  const ssize_t count = read(fd_, buffer, sizeof(buffer));
  if (count <= 0) return false;
  output_.append(buffer, static_cast<size_t>(count));
  return true;
}

bool Program::WaitForOutput(const std::string& text) {
  while (output_.find(text) == std::string::npos) {
    if (!ReadSome()) return false;
  }
  return true;
}

ProgramResult Program::Wait() {
  while (ReadSome()) {
  }
  int status = 0;
  CUBIT_CHECK_EQ(waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  ProgramResult result;
  result.status =
      WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.output = output_;
  return result;
}

ProgramResult RunProgram(const std::string& path,
                         const std::vector<std::string>& arguments,
                         const std::string& home) {
  return Program(path, arguments, home).Wait();
}

std::string NewFolder() {
  const char* base = std::getenv("TEST_TMPDIR");
  std::string folder =
      std::string(base == nullptr ? "/tmp" : base) + "/test_XXXXXX";
  CUBIT_CHECK(mkdtemp(folder.data()) != nullptr) << folder;
  return folder;
}

void WriteText(const std::string& path, const std::string& contents) {
  std::ofstream file(path, std::ios::binary);
  file << contents;
  CUBIT_CHECK(file.good()) << path;
}

std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream contents;
  contents << file.rdbuf();
  CUBIT_CHECK(file.good()) << path;
  return contents.str();
}

}  // namespace testing
}  // namespace cubit
