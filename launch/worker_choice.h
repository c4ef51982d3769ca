// SPDX-License-Identifier: Apache-2.0
//
// The program that a user starts is linked with no back end. It looks what the
// machine has and becomes the worker for it, a program beside it: NAME_cpu or
// NAME_cuda (macro cubit_worker_binary; decision 0024).

#ifndef CUBIT_LAUNCH_WORKER_CHOICE_H_
#define CUBIT_LAUNCH_WORKER_CHOICE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "launch/gpu_probe.h"

namespace cubit {

struct WorkerChoice {
  std::string kind;     // "cpu" or "cuda"
  std::string warning;  // what the user may want to know; "" mostly
};

// The worker for these arguments of a user. `probe` is called only where GPUs
// matter. Errors: --device is no word that it may be; cuda is asked for and
// cannot be had. A --dry_run computes nothing and needs no GPU.
absl::StatusOr<WorkerChoice> ChooseWorker(
    absl::Span<const std::string> arguments, bool cuda_worker_exists,
    GpuProbe (*probe)());

}  // namespace cubit

#endif  // CUBIT_LAUNCH_WORKER_CHOICE_H_
