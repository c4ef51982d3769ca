// SPDX-License-Identifier: Apache-2.0
//
// communicator_nccl.h of programs that compute on the CPU.

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "runtime/communicator_nccl.h"

namespace cubit {

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> /*host*/, const NcclOptions& /*options*/) {
  return absl::FailedPreconditionError(
      "this program computes on the CPU and has no NCCL");
}

}  // namespace cubit
