// SPDX-License-Identifier: Apache-2.0
//
// The profiles of all ranks as one line of metrics.jsonl.

#ifndef CUBIT_LAUNCH_PROFILE_EVENT_H_
#define CUBIT_LAUNCH_PROFILE_EVENT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "launch/metrics.h"
#include "runtime/communicator.h"
#include "runtime/profile_range.h"

namespace cubit {

// On rank 0 an event "profile" whose field "linear.rank2" is the device seconds
// a step that rank 2 spent on category "linear"; elsewhere without fields. A
// collective of `control`, in host memory.
absl::StatusOr<EventMetrics> GatherProfiles(const StepProfile& own,
                                            int64_t step,
                                            Communicator* control);

// The seconds a step by category, for each rank, of such an event.
std::vector<std::map<std::string, double>> ProfilesOfRanks(
    const EventMetrics& event);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_PROFILE_EVENT_H_
