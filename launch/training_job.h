// SPDX-License-Identifier: Apache-2.0
//
// From a configuration to a run: the layout is planned and refused if it cannot
// work, data are prepared, the run's folder is taken, and the trainer runs. All
// ranks of a job go through it together; what goes wrong on one before the run
// has begun is said once and ends all of them.

#ifndef CUBIT_LAUNCH_TRAINING_JOB_H_
#define CUBIT_LAUNCH_TRAINING_JOB_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "launch/bootstrap.h"
#include "launch/run.pb.h"
#include "launch/trainer.h"

namespace cubit {

struct TrainingRequest {
  RunConfig config;  // complete, valid by itself
  TrainerOptions options;
  std::string output_dir;
  // Time after which an operation that ranks wait in, or a silent rank, ends
  // the job (runtime/watchdog.h).
  double operation_limit_seconds = 600;
  double silence_limit_seconds = 30;
};

// The exit status of the program. Destroys the communicators of `bootstrap`.
absl::StatusOr<int> RunTrainingJob(const TrainingRequest& request,
                                   Bootstrap bootstrap);

// What a run is planned for, which may be on another machine.
struct PlannedDevice {
  std::string machine;       // a name of machine_model.h
  int64_t memory_bytes = 0;  // 0: unknown
};

// Prints what RunTrainingJob would do with `world_size` ranks: layout, memory
// and FLOPs of the rank that needs most, communication, time. An error if it
// does not fit.
absl::Status PrintDryRun(const RunConfig& config, int world_size,
                         const PlannedDevice& device);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_TRAINING_JOB_H_
