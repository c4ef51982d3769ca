// SPDX-License-Identifier: Apache-2.0
//
// The front of a program of one rank with two workers (worker_choice.h): its
// own name says which. It hands its arguments on as they are.

#include <cstdio>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "launch/worker_choice.h"
#include "runtime/command_line.h"
#include "runtime/status_macros.h"

namespace {

absl::Status Start(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  CUBIT_ASSIGN_OR_RETURN(const cubit::WorkerChoice choice,
                         cubit::ChooseWorkerHere(arguments));
  if (!choice.warning.empty()) {
    std::fprintf(stderr, "warning: %s\n", choice.warning.c_str());
  }
  return cubit::BecomeWorker(choice.kind, argv);
}

}  // namespace

int main(int argc, char** argv) {
  return cubit::ExitStatus(Start(argc, argv));  // returns only if it fails
}
