// SPDX-License-Identifier: Apache-2.0
//
// What the environment of a process says about ranks: who started it as which
// one, and which share of the machine is its own.

#ifndef CUBIT_LAUNCH_LAUNCHER_ENVIRONMENT_H_
#define CUBIT_LAUNCH_LAUNCHER_ENVIRONMENT_H_

#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace cubit {

using Environment = std::map<std::string, std::string>;

// Of this process.
Environment ReadEnvironment();

// The number that a variable holds; nullopt if there is none.
std::optional<int> NumberOf(const Environment& environment,
                            const std::string& name);

// Set by the launcher for its ranks (launcher_rank.h).
constexpr char kLauncherVariable[] = "CUBIT_LAUNCHER";

struct RankEnvironment {
  enum class Starter { kMpirun, kSrun, kPmi };

  Starter starter = Starter::kMpirun;
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;  // among the ranks of this host
  int local_size = 1;
};

// This process as a rank: of Open MPI's mpirun, of srun with several tasks (a
// batch script and an interactive shell of Slurm are none), or of another
// starter with PMI. nullopt: of none.
std::optional<RankEnvironment> RankOf(const Environment& environment);

// "mpirun", "srun", "PMI".
const char* Name(RankEnvironment::Starter starter);

// Threads for one of the ranks that share a host: at least 1. `usable` of the
// `online` processors may be used by this process. srun gives a task
// processors of its own; mpirun's ranks share what they may use.
int ThreadsOfRank(const RankEnvironment& rank, int usable, int online);

// The value of CUDA_VISIBLE_DEVICES that leaves the rank its own GPU, number
// local_rank of the `num_gpus` that the driver shows it. One GPU under srun is
// the task's own. FailedPrecondition if there are too few.
absl::StatusOr<std::string> VisibleGpuOfRank(const RankEnvironment& rank,
                                             const Environment& environment,
                                             int num_gpus);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_LAUNCHER_ENVIRONMENT_H_
