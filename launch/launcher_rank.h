// SPDX-License-Identifier: Apache-2.0
//
// The launcher's hand on every host: the process that mpirun or srun starts as
// a rank. It runs the worker as its child, tells the launcher how it ended
// (launcher_report.h), and sees to it that the worker never outlives the job.

#ifndef CUBIT_LAUNCH_LAUNCHER_RANK_H_
#define CUBIT_LAUNCH_LAUNCHER_RANK_H_

#include <string>

#include "absl/status/status.h"

#include "launch/launcher_environment.h"

namespace cubit {

// The signals by which the launcher, through mpirun or srun, has SIGINT and
// SIGTERM sent to the workers: those two would end mpirun and srun themselves.
int CarrierOf(int signal);

// Sets the variables that give the worker of this rank its share of the host:
// CUDA_VISIBLE_DEVICES where `kind` is "cuda" (so every worker's GPU is its
// device 0), and CUBIT_NUM_THREADS and OPENBLAS_NUM_THREADS unless they are
// set.
absl::Status ShareHost(const RankEnvironment& rank, const std::string& kind);

// Runs `worker` with `argv` (argv[0] included) as a child until it ends, and
// returns the exit status for the starter: 0 also after a clean stop by a
// signal, because another status would have mpirun kill the ranks that are
// still saving. The worker is killed if this process's parent goes.
int RunRank(const std::string& worker, char** argv,
            const RankEnvironment& rank);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_LAUNCHER_RANK_H_
