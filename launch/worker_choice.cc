// SPDX-License-Identifier: Apache-2.0

#include "launch/worker_choice.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace cubit {
namespace {

constexpr char kNotBuilt[] =
    "it was built without nvcc. Install the CUDA toolkit (its bin folder on "
    "the PATH) and build again";

// The value of the last --NAME=VALUE, --NAME VALUE or --NAME ("true");
// `missing` without one.
std::string FlagValue(absl::Span<const std::string> arguments,
                      absl::string_view name, bool takes_next,
                      std::string missing) {
  for (size_t i = 0; i < arguments.size() && arguments[i] != "--"; ++i) {
    absl::string_view flag = arguments[i];
    if (!absl::ConsumePrefix(&flag, "-")) continue;
    absl::ConsumePrefix(&flag, "-");
    if (!absl::ConsumePrefix(&flag, name)) continue;
    if (absl::ConsumePrefix(&flag, "=")) {
      missing = std::string(flag);
    } else if (flag.empty()) {
      const bool next = takes_next && i + 1 < arguments.size();
      missing = next ? arguments[i + 1] : "true";
    }
  }
  return missing;
}

}  // namespace

absl::StatusOr<WorkerChoice> ChooseWorker(
    absl::Span<const std::string> arguments, bool cuda_worker_exists,
    GpuProbe (*probe)()) {
  const std::string device =
      FlagValue(arguments, "device", /*takes_next=*/true, "auto");
  if (device == "cpu") return WorkerChoice{"cpu", ""};
  if (device == "auto") {
    const GpuProbe found = probe();
    if (found.num_gpus == 0) return WorkerChoice{"cpu", ""};
    if (cuda_worker_exists) return WorkerChoice{"cuda", ""};
    return WorkerChoice{
        "cpu", absl::StrCat("a GPU is here, but this program cannot use it: ",
                            kNotBuilt, ". Computing on the CPU")};
  }
  if (device != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("--device is \"", device, "\"; give auto, cpu or cuda"));
  }
  if (!cuda_worker_exists) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--device=cuda, but this program cannot use GPUs: ", kNotBuilt));
  }
  const std::string dry =
      FlagValue(arguments, "dry_run", /*takes_next=*/false, "false");
  if (dry == "true" || dry == "1") return WorkerChoice{"cuda", ""};
  const GpuProbe found = probe();
  if (found.num_gpus > 0) return WorkerChoice{"cuda", ""};
  return absl::FailedPreconditionError(
      absl::StrCat("--device=cuda, but ", found.problem,
                   ". Use --device=cpu, or --dry_run to plan a run for a GPU "
                   "that is elsewhere"));
}

}  // namespace cubit
