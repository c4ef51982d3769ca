// SPDX-License-Identifier: Apache-2.0
//
// Runs programs of the project as a user does: arguments in, exit status and
// output back.

#ifndef CUBIT_TESTS_TESTING_PROGRAM_H_
#define CUBIT_TESTS_TESTING_PROGRAM_H_

#include <string>
#include <vector>

namespace cubit {
namespace testing {

struct ProgramResult {
  int status = -1;     // exit status; 128 + signal if one ended it
  std::string output;  // standard output and error together
};

// A program that was started and may still run.
class Program {
 public:
  // `path` is relative to the runfiles, "launch/train". The program's HOME and
  // cache are below `home`, and it is told of no folder where a user stands.
  Program(const std::string& path, const std::vector<std::string>& arguments,
          const std::string& home);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void Signal(int signal);
  // Reads output until `text` was seen; false if the program ended before.
  bool WaitForOutput(const std::string& text);
  ProgramResult Wait();

 private:
  bool ReadSome();

  int pid_ = -1;
  int fd_ = -1;
  std::string output_;
};

ProgramResult RunProgram(const std::string& path,
                         const std::vector<std::string>& arguments,
                         const std::string& home);

// A new empty folder of the running test, removed by Bazel.
std::string NewFolder();

void WriteText(const std::string& path, const std::string& contents);
std::string ReadText(const std::string& path);

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_TESTING_PROGRAM_H_
