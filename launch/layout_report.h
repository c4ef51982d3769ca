// SPDX-License-Identifier: Apache-2.0
//
// What --dry_run prints of a layout: who holds what, what it needs in memory,
// what it sends, and about how long a step takes.

#ifndef CUBIT_LAUNCH_LAYOUT_REPORT_H_
#define CUBIT_LAUNCH_LAYOUT_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "launch/machine_model.h"
#include "launch/parallel_plan.h"
#include "launch/run.pb.h"
#include "models/model_config.h"
#include "runtime/memory.h"

namespace cubit {

// The exact plan of one rank's memory (train_state.h).
struct RankMemory {
  int rank = 0;
  MemoryUse use;
  int64_t process_bytes = 0;  // of the device, besides

  int64_t total() const { return use.total() + process_bytes; }
};

// The first rank of every pipeline stage. The others of a stage need the same
// memory to the padding of buckets.
std::vector<int> DistinctRanks(const ParallelPlan& plan);

// Of those, the rank that needs most; the first of equals. CHECK: not empty.
const RankMemory& LargestRank(const std::vector<RankMemory>& memory);

// The page. `memory` is of DistinctRanks(plan), or empty: then it is left out.
// Errors of layout_costs.h and step_simulator.h.
absl::StatusOr<std::string> LayoutReport(const ParallelPlan& plan,
                                         const RunConfig& config,
                                         const ModelConfig& model,
                                         const std::vector<RankMemory>& memory,
                                         const MachineModel& machine);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_LAYOUT_REPORT_H_
