// SPDX-License-Identifier: Apache-2.0
//
// How a worker finds the other ranks: called by programs that may have several,
// after the command line is read and before anything is allocated.
//
//   StartRanks -> configuration -> CheckAgreement -> the run

#ifndef CUBIT_LAUNCH_BOOTSTRAP_H_
#define CUBIT_LAUNCH_BOOTSTRAP_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "launch/launcher_environment.h"
#include "runtime/communicator.h"
#include "runtime/communicator_mpi.h"

namespace cubit {

struct Bootstrap {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;  // among the ranks of this host; its GPU is device 0
  int local_size = 1;
  std::string host;
  std::unique_ptr<MpiSession> session;  // null for one rank
  // Groups of all ranks: `world` moves tensors of this program's device (MPI on
  // the CPU, NCCL on GPUs), `control` those in host memory (MPI).
  std::unique_ptr<Communicator> world;
  std::unique_ptr<Communicator> control;
};

// A collective of all ranks that mpirun or srun started; one rank where neither
// did. From here on log lines carry the rank. FailedPrecondition: the starter
// and MPI disagree about the ranks.
absl::StatusOr<Bootstrap> StartRanks();

// A collective: refuses ranks that are not one job (bootstrap_agreement.h).
// `config` is the resolved text.
absl::Status CheckAgreement(const Bootstrap& ranks, absl::string_view config,
                            int nodes, int gpus_per_node);

// Has the launcher print `command` when the job ends and can be resumed, even
// if no rank is left to say so. On rank 0 of a job of several ranks; elsewhere
// does nothing.
void AnnounceResumeCommand(const Bootstrap& ranks, const std::string& command);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_BOOTSTRAP_H_
