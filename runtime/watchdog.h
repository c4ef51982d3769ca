// SPDX-License-Identifier: Apache-2.0
//
// Ends a run that hangs, and says why. Each process has a thread of it, which
// tells rank 0 every second what the process does, over TCP connections of its
// own: MPI does not notice a cut link for a quarter of an hour, and NCCL never.
//
//   - An operation of a watched communicator that is pending past its limit, or
//     a rank that is silent past the limit: rank 0 reports the group, the
//     operation and its number, who has and has not arrived, and what every
//     rank does; all ranks end with status 3 (kExitHung).
//   - A rank that ends with an error, or without a word: status 2 (kExitFailed)
//     on all others, within about a second.
//   - Ranks that lose rank 0 end by themselves.
//
// At half of a limit there is a warning. Limits run on monotonic clocks, and a
// process that was stopped itself does not take the others for silent. What is
// concluded, and its words: watchdog_report.h.

#ifndef CUBIT_RUNTIME_WATCHDOG_H_
#define CUBIT_RUNTIME_WATCHDOG_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

#include "runtime/communicator.h"

namespace cubit {

struct WatchdogOptions {
  // Longer than any rank computes between two operations. Time limits of
  // communicators should be longer, so that this report comes first.
  absl::Duration operation_limit = absl::Seconds(600);
  absl::Duration silence_limit = absl::Seconds(30);
  // How long Start waits for ranks to connect.
  absl::Duration start_limit = absl::Seconds(60);
  // Whether failed checks and other fatal errors of this process are told to
  // the others (SetFatalHook). At most one watchdog of a process does.
  bool hook_fatal_errors = true;
  // Ends the process; null: logs `report` and calls _Exit(exit_status). Called
  // at most once, on the watchdog's thread. For tests.
  std::function<void(int exit_status, const std::string& report)> end_process;
};

// Functions are thread-safe.
class Watchdog {
 public:
  // A collective of the ranks of `control`, which moves host memory; it is not
  // used afterwards. Unavailable: ranks cannot reach rank 0, by name.
  static absl::StatusOr<std::unique_ptr<Watchdog>> Start(
      Communicator& control, const WatchdogOptions& options);
  // This rank ends as it should: the others do not miss it.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Looks at the operations of a communicator from now on. Groups of different
  // ranks have different names.
  void Watch(std::shared_ptr<const FlightRecorder> recorder);

  // What this process does, for reports: "F3.1, block solve 2 of group 1".
  // Cheap.
  void SetActivity(absl::string_view activity);
  void SetStep(int64_t step);

  // This rank will end with an error: the others end too, with `error` as the
  // reason. Returns when they have been told, at the latest after 2 s.
  void ReportFailure(absl::string_view error);

 private:
  class Impl;
  explicit Watchdog(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace cubit

#endif  // CUBIT_RUNTIME_WATCHDOG_H_
