// SPDX-License-Identifier: Apache-2.0
//
// What a run says: plain lines to the terminal and, once LogToFile was called,
// to log.txt too. Built on spdlog; text is formatted by the caller
// (absl::StrFormat), so that no header here needs spdlog's.

#ifndef CUBIT_RUNTIME_LOGGING_H_
#define CUBIT_RUNTIME_LOGGING_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace cubit {

// One line each, to standard error; thread-safe. Warnings and errors begin with
// the word.
void LogInfo(absl::string_view line);
void LogWarning(absl::string_view line);
void LogError(absl::string_view line);
// To the file of LogToFile alone: what helps to understand a run afterwards.
void LogDebug(absl::string_view line);

// Copies every line that follows into `path` too (appended). Ranks may share a
// file: a line of theirs is one write.
absl::Status LogToFile(const std::string& path);

// From here on this process is one of `num_ranks` ranks. If there are several,
// lines of ranks other than 0 begin with "[rank 3] " and their information
// goes to the file only; in the file rank 0 has its prefix too.
void LogAsRank(int rank, int num_ranks);

// Columns of the terminal that shows this process's standard error, although
// that is no terminal itself: set by the launcher of several ranks.
constexpr char kTerminalWidthVariable[] = "CUBIT_TERMINAL_WIDTH";

// A status line that is rewritten in place on a terminal; elsewhere the call
// does nothing (write a LogInfo line every so often instead). The next Log line
// clears it.
void ShowProgress(absl::string_view line);
// Whether ShowProgress shows anything.
bool ProgressIsShown();

// Prints a stack trace when the program crashes.
void InstallCrashHandler(const char* program);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_LOGGING_H_
