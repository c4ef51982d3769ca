// SPDX-License-Identifier: Apache-2.0
//
// Ranks that hold the same numbers: which of them speaks for all, and whether
// they still agree.

#ifndef CUBIT_PARALLEL_REPLICAS_H_
#define CUBIT_PARALLEL_REPLICAS_H_

#include "absl/status/status.h"

#include "parallel/mesh_communicators.h"
#include "parallel/parameter.h"
#include "runtime/device.h"

namespace cubit {

// Whether this rank's dp x cp group speaks for its slice of `parameter`: the
// first tp rank where all tp ranks hold the whole, the first stage where both
// ends hold it.
bool IsPrimary(const Parameter& parameter, const MeshCommunicators& mesh);

// Whether this rank writes its slice of the weights of `parameter` into
// checkpoints: each slice is written by one rank.
bool SavesParameter(const Parameter& parameter, MeshCommunicators& mesh);

// Compares the weights of all ranks that must hold the same bits: all of them
// in each dp x cp group, what tp does not cut over tp, tied embeddings on both
// ends of a pipeline. A collective of all ranks; reads the weights, waits for
// the device and sends 8 bytes a rank. DataLoss, the same on every rank, names
// the ranks that differ from most of their group (of two that differ, both),
// their hosts, and the first parameter in which they do. Call it after the
// weights were gathered (ShardedAdamW::WaitForAllWeights).
absl::Status CheckReplicas(const ParameterStore& store, MeshCommunicators& mesh,
                           Stream& stream);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_REPLICAS_H_
