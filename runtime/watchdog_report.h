// SPDX-License-Identifier: Apache-2.0
//
// What the watchdog concludes from what it knows of every rank, and how it says
// so: pure functions, without sockets and clocks.

#ifndef CUBIT_RUNTIME_WATCHDOG_REPORT_H_
#define CUBIT_RUNTIME_WATCHDOG_REPORT_H_

#include <optional>
#include <string>
#include <vector>

#include "runtime/watchdog.pb.h"

namespace cubit {

struct WatchdogLimits {
  double operation_seconds = 600;
  double silence_seconds = 30;
};

// A rank as rank 0 knows it.
struct WatchedRank {
  enum class State { kHere, kLeft, kLost };

  int rank = 0;
  std::string host;
  WatchdogMessage::Heartbeat heartbeat;  // the last one
  double silent_seconds = 0;             // since then
  State state = State::kHere;            // kLost: ended without a farewell
  std::string error;                     // with which it ended
};

struct WatchdogFindings {
  std::optional<WatchdogMessage::Verdict> verdict;
  // Past half of a limit. `key` is the same while it lasts.
  struct Warning {
    std::string key;
    std::string text;
  };
  std::vector<Warning> warnings;
};

// Status kExitFailed if a rank ended with an error or without a word, kExitHung
// if one is silent, or an operation is pending, past its limit. Of several
// operations the report begins with one that waits for a rank which waits for
// nobody, if there is one: the others may follow from it.
WatchdogFindings JudgeRanks(const std::vector<WatchedRank>& ranks,
                            const WatchdogLimits& limits);

// "rank 2 (node7)".
std::string NameOf(const WatchedRank& rank);
// One line: step, activity, operations, silence.
std::string DescribeRank(const WatchedRank& rank);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_WATCHDOG_REPORT_H_
