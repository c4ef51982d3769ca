// SPDX-License-Identifier: Apache-2.0
//
// What every program does first: flags (absl), --help with examples, errors
// that name the nearest flag, paths relative to where the user stands.

#ifndef CUBIT_RUNTIME_COMMAND_LINE_H_
#define CUBIT_RUNTIME_COMMAND_LINE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace cubit {

// Exit statuses of every program (product.md; docs/reliability.md).
constexpr int kExitDone = 0;
constexpr int kExitWrongRequest = 1;  // do not retry; nothing was changed
constexpr int kExitFailed = 2;        // can be resumed
constexpr int kExitHung = 3;          // ended by the watchdog; can be resumed
constexpr int kExitOtherHardware = 4;
constexpr int kExitInterrupted = 130;  // SIGINT, after a clean checkpoint
constexpr int kExitTerminated = 143;   // SIGTERM, likewise

// Parses absl flags and returns the remaining arguments (without argv[0]).
// --help prints `usage` (purpose, examples) and every flag of the program, and
// exits 0. An unknown flag or a bad value prints the nearest flag and exits 1.
// Moves to the folder where the user typed the command (`bazel run` starts
// programs elsewhere), and installs the crash handler.
std::vector<std::string> ParseCommandLine(int argc, char** argv,
                                          absl::string_view usage);

// Removes every `--NAME VALUE` and `--NAME=VALUE` from the arguments and
// returns the values in order: for a flag that may stand more than once, which
// absl flags cannot. Call before ParseCommandLine. A last `--NAME` without a
// value prints what is missing and exits 1.
std::vector<std::string> TakeRepeatedFlag(absl::string_view name, int* argc,
                                          char** argv);

// Prints "error: ..." and returns the exit status that fits: 1 for a wrong
// request or bad input (InvalidArgument, NotFound, FailedPrecondition, ...),
// 2 for a failed run (Aborted, DataLoss, Internal, Unavailable, ...).
int ExitStatus(const absl::Status& status);
// The same without a word: where another rank says it.
int ExitStatusOf(const absl::Status& status);

// The candidate with the smallest edit distance to `word`; "" if none is near.
std::string NearestWord(absl::string_view word,
                        const std::vector<std::string>& candidates);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_COMMAND_LINE_H_
