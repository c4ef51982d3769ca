// SPDX-License-Identifier: Apache-2.0

#include "launch/worker_choice.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace cubit {
namespace {

constexpr char kNotBuilt[] =
    "it was built without nvcc. Install the CUDA toolkit (its bin folder on "
    "the PATH) and build again";

}  // namespace

absl::StatusOr<WorkerChoice> ChooseWorker(
    absl::Span<const std::string> arguments, bool cuda_worker_exists,
    GpuProbe (*probe)()) {
  const std::string device =
      FlagValue(arguments, "device", /*takes_next=*/true, "auto");
  if (device == "cpu") return WorkerChoice{"cpu", ""};
  if (device == "auto") {
    const GpuProbe found = probe();
    if (found.is_unusable) {
      return WorkerChoice{
          "cpu", absl::StrCat(found.problem, ". Computing on the CPU")};
    }
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

std::string OwnPath() {
  std::vector<char> path(4096);
  const ssize_t size = readlink("/proc/self/exe", path.data(), path.size());
  return size < 0 ? "" : std::string(path.data(), static_cast<size_t>(size));
}

absl::StatusOr<WorkerChoice> ChooseWorkerHere(
    absl::Span<const std::string> arguments) {
  const std::string cuda_worker = absl::StrCat(OwnPath(), "_cuda");
  return ChooseWorker(arguments, access(cuda_worker.c_str(), X_OK) == 0,
                      ProbeGpus);
}

absl::Status BecomeWorker(const std::string& kind, char** argv) {
  const std::string worker = absl::StrCat(OwnPath(), "_", kind);
  execv(worker.c_str(), argv);
  return absl::NotFoundError(absl::StrCat(worker, ": ", std::strerror(errno),
                                          "; build it, as bazel does before "
                                          "it runs this program"));
}

std::vector<std::string> FlagValues(absl::Span<const std::string> arguments,
                                    absl::string_view name, bool takes_next) {
  std::vector<std::string> values;
  for (size_t i = 0; i < arguments.size() && arguments[i] != "--"; ++i) {
    absl::string_view flag = arguments[i];
    if (!absl::ConsumePrefix(&flag, "-")) continue;
    absl::ConsumePrefix(&flag, "-");
    if (!absl::ConsumePrefix(&flag, name)) continue;
    if (absl::ConsumePrefix(&flag, "=")) {
      values.emplace_back(flag);
    } else if (flag.empty()) {
      const bool next = takes_next && i + 1 < arguments.size();
      values.push_back(next ? arguments[++i] : "true");
    }
  }
  return values;
}

std::string FlagValue(absl::Span<const std::string> arguments,
                      absl::string_view name, bool takes_next,
                      const std::string& missing) {
  const std::vector<std::string> values =
      FlagValues(arguments, name, takes_next);
  return values.empty() ? missing : values.back();
}

}  // namespace cubit
