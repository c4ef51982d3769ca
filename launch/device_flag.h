// SPDX-License-Identifier: Apache-2.0
//
// --device of every program with two workers (worker_choice.h). The front has
// chosen by it; the worker only checks that it is the one that was meant.

#ifndef CUBIT_LAUNCH_DEVICE_FLAG_H_
#define CUBIT_LAUNCH_DEVICE_FLAG_H_

#include "absl/status/status.h"

namespace cubit {

// An error if --device asks for another kind than this worker's. To be called
// after ParseCommandLine.
absl::Status CheckDeviceFlag();

}  // namespace cubit

#endif  // CUBIT_LAUNCH_DEVICE_FLAG_H_
