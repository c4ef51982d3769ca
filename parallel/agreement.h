// SPDX-License-Identifier: Apache-2.0
//
// Verdicts and short texts that all ranks of a group must share. Every function
// is a collective of `group`, which moves host memory
// (MeshCommunicators::control); with null or a group of one rank nothing is
// sent. An error of the group itself is returned as it is.

#ifndef CUBIT_PARALLEL_AGREEMENT_H_
#define CUBIT_PARALLEL_AGREEMENT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "runtime/communicator.h"

namespace cubit {

// OK if `mine` is on every rank; else on every rank the error of the first rank
// that has one, which is named.
absl::Status Agree(Communicator* group, const absl::Status& mine);

// The text of rank `root`, on every rank.
absl::StatusOr<std::string> BroadcastText(Communicator* group,
                                          const std::string& text, int root);

// On rank 0 the texts of all ranks, in their order; elsewhere none.
absl::StatusOr<std::vector<std::string>> GatherTexts(Communicator* group,
                                                     const std::string& text);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_AGREEMENT_H_
