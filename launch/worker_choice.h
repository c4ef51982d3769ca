// SPDX-License-Identifier: Apache-2.0
//
// The program that a user starts is linked with no back end. It looks what the
// machine has and becomes the worker for it, a program beside it: NAME_cpu or
// NAME_cuda (macro cubit_worker_binary; decision 0024).

#ifndef CUBIT_LAUNCH_WORKER_CHOICE_H_
#define CUBIT_LAUNCH_WORKER_CHOICE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
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

// Where this program lies, links resolved; "" if the system does not say. The
// workers lie beside it: OwnPath() + "_cpu".
std::string OwnPath();

// ChooseWorker with the GPUs and the workers that are here.
absl::StatusOr<WorkerChoice> ChooseWorkerHere(
    absl::Span<const std::string> arguments);

// Becomes that worker: returns only if it cannot, with what is missing.
// `argv` as main got it.
absl::Status BecomeWorker(const std::string& kind, char** argv);

// The values of every --NAME=VALUE, --NAME VALUE (where `takes_next`) or --NAME
// ("true") before "--", in order, as the worker will read them.
std::vector<std::string> FlagValues(absl::Span<const std::string> arguments,
                                    absl::string_view name, bool takes_next);
// The last of them; `missing` without one.
std::string FlagValue(absl::Span<const std::string> arguments,
                      absl::string_view name, bool takes_next,
                      const std::string& missing);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_WORKER_CHOICE_H_
