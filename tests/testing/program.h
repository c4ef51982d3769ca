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

// Runs `arguments[0]` (a path; relative to the test's runfiles) with no
// standard input and returns when it has ended. `environment` ("NAME=value") is
// added to the test's own. CHECK: the program can be started.
ProgramResult RunProgram(const std::vector<std::string>& arguments,
                         const std::vector<std::string>& environment = {});

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_TESTING_PROGRAM_H_
