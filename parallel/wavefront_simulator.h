// SPDX-License-Identifier: Apache-2.0
//
// Walks the programs of all ranks of a wavefront solve together: finds
// deadlocks, actions before their inputs and messages before their
// contributions, and gives times, also with other costs than those that the
// schedule was made with (measured ones).
//
// Messages run one at a time, in their order, beside the computation; one
// begins when every rank has posted it.

#ifndef CUBIT_PARALLEL_WAVEFRONT_SIMULATOR_H_
#define CUBIT_PARALLEL_WAVEFRONT_SIMULATOR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "parallel/wavefront_schedule.h"
#include "parallel/wavefront_trace.h"

namespace cubit {

struct WavefrontRun {
  double makespan = 0;
  // Busy time of all ranks / (ranks * makespan).
  double efficiency = 0;
  std::vector<WavefrontSpan> timeline;  // rank by rank, in order
  // The most messages that a rank has posted and that have not arrived.
  std::vector<int64_t> max_in_flight;  // per rank
};

// FailedPrecondition, naming rank and action: a deadlock; an action that is
// missing, runs twice or on the wrong rank; one whose inputs are not there; a
// message that is posted before this rank has added its part, or never.
absl::StatusOr<WavefrontRun> SimulateWavefront(
    const WavefrontSchedule& schedule, const WavefrontCosts& costs);

// Efficiency of the schedule that is made for the shape. CHECK: the simulation
// finds nothing wrong.
double WavefrontEfficiency(WavefrontPass pass, bool attention,
                           const WavefrontShape& shape,
                           const WavefrontCosts& costs);

// Percent of time busy, solve alone / with attention, forward and backward, for
// cp 2, 4, 8 and 1 to 64 groups: contiguous chunks, zigzag with two chunks a
// rank and with four. A Markdown table.
std::string WavefrontTable(const WavefrontCosts& costs);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_WAVEFRONT_SIMULATOR_H_
