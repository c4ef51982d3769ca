// SPDX-License-Identifier: Apache-2.0
//
// Runs the ranks of a job through mpirun or srun and answers for them: passes
// their output on, hands signals to them, and ends the job within seconds of a
// rank's death, with the reason first.
//
//   what to start       launcher_plan.h
//   the starter         launcher_job.h
//   on every host       launcher_rank.h
//   words and judgement launcher_report.h

#ifndef CUBIT_LAUNCH_LAUNCHER_H_
#define CUBIT_LAUNCH_LAUNCHER_H_

namespace cubit {

// The main of a program with ranks: starts them, or is one of them, or becomes
// the worker if there is one rank only. Returns the exit status.
int LauncherMain(int argc, char** argv);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_LAUNCHER_H_
