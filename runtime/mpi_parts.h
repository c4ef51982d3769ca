// SPDX-License-Identifier: Apache-2.0
//
// How the tensors of a collective of communicator_mpi.cc move: in parts, one
// for each rank, straight from rank to rank.

#ifndef CUBIT_RUNTIME_MPI_PARTS_H_
#define CUBIT_RUNTIME_MPI_PARTS_H_

#include "absl/status/status.h"

#include "runtime/communicator.h"
#include "runtime/mpi_transfers.h"

namespace cubit {

// Does `call` (AllReduce, AllGather, ReduceScatter, AllToAll or Broadcast),
// which all ranks have begun with equal arguments. Sums are in the order of the
// ranks. Begin() was called, End() is the caller's.
absl::Status MoveParts(const CollectiveCall& call, MpiTransfers& transfers);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_MPI_PARTS_H_
