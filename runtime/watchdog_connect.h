// SPDX-License-Identifier: Apache-2.0
//
// The connections of watchdog.h: a star around rank 0.

#ifndef CUBIT_RUNTIME_WATCHDOG_CONNECT_H_
#define CUBIT_RUNTIME_WATCHDOG_CONNECT_H_

#include <chrono>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "runtime/communicator.h"
#include "runtime/frame_socket.h"
#include "runtime/watchdog_report.h"

namespace cubit {

// The other end of a connection.
struct WatchdogPeer {
  FrameSocket socket;
  WatchedRank rank;
  std::chrono::steady_clock::time_point heard;
};

// A collective: rank 0 listens and tells where, the others call. All other
// ranks on rank 0, rank 0 on the others, none in a world of one. Unavailable,
// on every rank, if one cannot connect within `timeout`: names the ranks.
absl::StatusOr<std::vector<WatchdogPeer>> ConnectWatchdogs(
    Communicator& control, absl::Duration timeout);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_WATCHDOG_CONNECT_H_
