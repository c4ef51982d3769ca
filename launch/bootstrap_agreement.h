// SPDX-License-Identifier: Apache-2.0
//
// Whether the ranks of a job are one job: as many as the configuration says,
// each of them once, all with the same program and configuration. Found out
// before anything is allocated.

#ifndef CUBIT_LAUNCH_BOOTSTRAP_AGREEMENT_H_
#define CUBIT_LAUNCH_BOOTSTRAP_AGREEMENT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "runtime/communicator.h"

namespace cubit {

// What a rank says of itself.
struct RankFacts {
  int rank = 0;  // by its starter's variables
  int world_size = 1;
  std::string host;
  int pid = 0;
  std::string program;  // digest of the worker's file
  std::string config;   // the resolved configuration
};

// The digest of this process's program file.
absl::StatusOr<std::string> OwnProgramDigest();

// A collective: every rank returns the same error (FailedPrecondition), which
// names ranks, hosts and processes; for configurations, the first line that
// differs. `control` moves host memory.
absl::Status CheckFacts(Communicator& control, const RankFacts& own);

// FailedPrecondition unless `world_size` ranks are what parallel.nodes and
// parallel.gpus_per_node ask for (0: any number on every node with "cuda", one
// with "cpu").
absl::Status CheckRankCount(int nodes, int gpus_per_node,
                            absl::string_view device_kind, int world_size);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_BOOTSTRAP_AGREEMENT_H_
