// SPDX-License-Identifier: Apache-2.0
//
// Runs a program of ours as a user would: arguments in, exit status and output
// out.

#ifndef CUBIT_TESTS_TESTING_PROGRAM_H_
#define CUBIT_TESTS_TESTING_PROGRAM_H_

#include <string>
#include <vector>

namespace cubit {
namespace testing {

struct ProgramResult {
  int exit_status = 0;  // 128 + n if signal n ended it
  std::string output;   // standard output
  std::string errors;   // standard error
};

// A program that was started and may still run. It is killed if it is when this
// goes.
class Program {
 public:
  // Starts `arguments[0]` (a path; relative to the test's runfiles) with no
  // standard input. `environment` ("NAME=value") goes before the test's own.
  // CHECK: the program can be started.
  Program(const std::vector<std::string>& arguments,
          const std::vector<std::string>& environment);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void Signal(int signal);
  // Reads standard error until it holds `text`; false if it ended without.
  bool WaitForError(const std::string& text);
  // The rest of its life.
  ProgramResult Wait();

 private:
  bool ReadErrors();

  int pid_ = -1;
  int errors_fd_ = -1;
  std::string output_path_;  // a temporary file
  std::string errors_;
};

// Program(...).Wait().
ProgramResult RunProgram(const std::vector<std::string>& arguments,
                         const std::vector<std::string>& environment = {});

// What a user sees of a program: its status and all that it says.
struct Outcome {
  int status = 0;
  std::string output;
};

// Runs `program` (a path in the runfiles) as from a shell that stands in
// `home`, with HOME and the cache below it.
Outcome RunAsUser(const std::string& program,
                  const std::vector<std::string>& arguments,
                  const std::string& home);

// The same as a Program that may still run.
std::vector<std::string> UserCommand(const std::string& program,
                                     const std::vector<std::string>& arguments);
std::vector<std::string> UserEnvironment(const std::string& home);
Outcome OutcomeOf(const ProgramResult& result);

// A new empty folder for the running test.
std::string NewFolder();

void WriteText(const std::string& path, const std::string& contents);
std::string ReadText(const std::string& path);

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_TESTING_PROGRAM_H_
