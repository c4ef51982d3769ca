// SPDX-License-Identifier: Apache-2.0
//
// The process of mpirun or srun, and the launcher's watch over it.

#ifndef CUBIT_LAUNCH_LAUNCHER_JOB_H_
#define CUBIT_LAUNCH_LAUNCHER_JOB_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "launch/launcher_environment.h"

namespace cubit {

// Runs `command` (found on the PATH) with `additions` to the environment until
// it ends, and returns the exit status of the job (docs/reliability.md). Its
// output goes to this process's own, filtered.
//
// SIGINT and SIGTERM go to the ranks, which save and stop; the second one, or
// ten minutes, kill them. A second signal ends this process too, by its default
// action. Error: the command cannot be started.
absl::StatusOr<int> RunJob(const std::vector<std::string>& command,
                           const Environment& additions);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_LAUNCHER_JOB_H_
