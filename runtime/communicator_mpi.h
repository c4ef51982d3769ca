// SPDX-License-Identifier: Apache-2.0
//
// Ranks that are processes, started by mpirun or srun, with tensors in host
// memory. MPI moves bytes and nothing else: sums are made here, in the order of
// the ranks, so that they have the same bits on every rank and in every run.
//
// A collective first exchanges a description of the call between all ranks,
// which finds calls that differ and says who has not arrived; inputs of up to
// 512 bytes travel with it. Larger ones move in parts: a sum is a
// reduce-scatter and an all-gather of parts, in which a rank sends and receives
// 2 (size - 1) / size of the tensor. The description costs size - 1 small
// messages a rank, which is fine for hundreds of ranks on the host.
//
// Nothing blocks inside MPI: all calls are polled against the time limit, and a
// failure or farewell of any rank ends the waits of the others. Ranks that find
// different errors at the same moment may each report their own.
//
// Where streams run ahead of the host (CUDA), a call first waits for its
// stream; this is how such programs set up and talk beside their devices.

#ifndef CUBIT_RUNTIME_COMMUNICATOR_MPI_H_
#define CUBIT_RUNTIME_COMMUNICATOR_MPI_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

#include "runtime/communicator.h"

namespace cubit {

struct MpiOptions {
  // An operation that waits longer than this for others fails the group. Longer
  // than the watchdog's limit, whose report says more.
  absl::Duration timeout = absl::Minutes(20);
  // Tensors are moved in blocks of this size: bounds the scratch memory of a
  // communicator (twice this) and what MPI counts in an int.
  int64_t block_bytes = int64_t{16} << 20;
};

// MPI from its initialisation to its end. One per process and life; it outlives
// the communicators, which any thread may use.
class MpiSession {
 public:
  // Whether mpirun (OMPI_COMM_WORLD_SIZE), another PMI launcher (PMI_SIZE) or a
  // job step of several tasks (SLURM_STEP_NUM_TASKS) started this process.
  // These are the only environment variables that the bootstrap reads.
  static bool StartedByMpi();

  // A collective of all processes. FailedPrecondition: MPI lacks support for
  // threads.
  static absl::StatusOr<std::unique_ptr<MpiSession>> Start();
  // Waits for the other ranks' sessions to end. If they do not within 30 s the
  // process ends with status 2, which makes mpirun end the others.
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const;
  int size() const;

  // A new group of all processes; a collective of all of them, one at a time.
  // Groups split from it have the same options. CHECK: timeout > 0, block_bytes
  // from 1 to 2^30.
  absl::StatusOr<std::unique_ptr<Communicator>> MakeCommunicator(
      absl::string_view name, const MpiOptions& options);

 private:
  struct State;
  explicit MpiSession(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

}  // namespace cubit

#endif  // CUBIT_RUNTIME_COMMUNICATOR_MPI_H_
