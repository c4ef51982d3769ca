// SPDX-License-Identifier: Apache-2.0
//
// communicator_nccl.h where CUDA is found but NCCL is not.

#include "absl/status/status.h"

#include "runtime/communicator_nccl.h"

namespace cubit {

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> /*host*/, const NcclOptions& /*options*/) {
  return absl::FailedPreconditionError(
      "this program was built without NCCL, so it cannot use several GPUs: put "
      "nccl.h and libnccl.so into the CUDA toolkit's folders and build it "
      "again");
}

}  // namespace cubit
