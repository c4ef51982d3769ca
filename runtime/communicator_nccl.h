// SPDX-License-Identifier: Apache-2.0
//
// Ranks that are processes with a GPU each: the current CUDA device of the
// process, tensors in its memory, operations queued on streams, over NCCL.
// Implemented where CUDA and NCCL are found; elsewhere Make returns
// FailedPrecondition.
//
// Every group owns a host communicator of the same ranks. It carries NCCL's
// identifiers at set-up and failures later: Abort, a failed rank or one that
// left reaches all ranks through it, as soon as they look at Health(). A rank
// that waits for its device cannot look, so the watchdog does, through the
// flight recorder; NCCL's kernels are then aborted, and the wait ends.
//
// Sums are NCCL's: in an order that depends on the ranks and their connections
// but not on who arrives first, and equal on every rank. bf16 is rounded after
// each addition.

#ifndef CUBIT_RUNTIME_COMMUNICATOR_NCCL_H_
#define CUBIT_RUNTIME_COMMUNICATOR_NCCL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "runtime/communicator.h"

namespace cubit {

struct NcclOptions {
  // An operation that has not finished so long after it was queued fails the
  // group. Longer than a step: what is before it on the stream counts too.
  absl::Duration timeout = absl::Minutes(20);
};

// A group of the ranks of `host`, of the same name; a collective of them.
// Groups split from it have the same options. Sets NCCL_NVLS_ENABLE=0 in the
// environment unless it is set: reductions inside the switch (NVLink multicast)
// are not available in every container, and NCCL does not fall back by itself.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> host, const NcclOptions& options);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_COMMUNICATOR_NCCL_H_
