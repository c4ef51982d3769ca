// SPDX-License-Identifier: Apache-2.0
//
// Ranks that are threads of one process and read each other's tensors in place:
// for tests of parallel code, and for runs of several ranks on one host.
// Tensors are in host memory and streams those of the CPU back end.

#ifndef CUBIT_RUNTIME_COMMUNICATOR_THREADS_H_
#define CUBIT_RUNTIME_COMMUNICATOR_THREADS_H_

#include <memory>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

#include "runtime/communicator.h"

namespace cubit {

// The communicators of ranks 0 to size - 1, one for each thread. An operation
// that waits for others longer than `timeout` fails the group; so does one that
// needs a rank whose communicator was destroyed. Groups split from this one
// have the same limit. CHECK: size >= 1, timeout > 0.
std::vector<std::unique_ptr<Communicator>> MakeThreadCommunicators(
    absl::string_view name, int size, absl::Duration timeout);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_COMMUNICATOR_THREADS_H_
