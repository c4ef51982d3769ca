// SPDX-License-Identifier: Apache-2.0
//
// The front of every program with two workers (worker_choice.h): its own name
// says which. It hands its arguments on as they are.

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "launch/worker_choice.h"
#include "runtime/command_line.h"

namespace {

// Where this program lies, links resolved: the workers lie beside it.
std::string OwnPath() {
  std::vector<char> path(4096);
  const ssize_t size = readlink("/proc/self/exe", path.data(), path.size());
  return size < 0 ? "" : std::string(path.data(), static_cast<size_t>(size));
}

absl::Status Start(int argc, char** argv) {
  const std::string self = OwnPath();
  const std::string cuda_worker = absl::StrCat(self, "_cuda");
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const absl::StatusOr<cubit::WorkerChoice> choice = cubit::ChooseWorker(
      arguments, access(cuda_worker.c_str(), X_OK) == 0, cubit::ProbeGpus);
  if (!choice.ok()) return choice.status();
  if (!choice->warning.empty()) {
    std::fprintf(stderr, "warning: %s\n", choice->warning.c_str());
  }
  const std::string worker = absl::StrCat(self, "_", choice->kind);
  execv(worker.c_str(), argv);
  return absl::NotFoundError(absl::StrCat(worker, ": ", std::strerror(errno),
                                          "; build it, as bazel does before "
                                          "it runs this program"));
}

}  // namespace

int main(int argc, char** argv) {
  return cubit::ExitStatus(Start(argc, argv));  // returns only if it fails
}
