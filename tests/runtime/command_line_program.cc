// SPDX-License-Identifier: Apache-2.0
//
// A small program for command_line_test: prints what it was given.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/flags/flag.h"

#include "runtime/command_line.h"

ABSL_FLAG(std::string, prompt, "Once", "Text to begin with.");
ABSL_FLAG(int, num_layers, 2, "Layers.");
ABSL_FLAG(bool, resume, false, "Continue a run.");
ABSL_FLAG(std::string, fail, "", "Name of the status to end with.");

namespace {

absl::Status Requested(const std::string& name) {
  if (name == "not_found") return absl::NotFoundError("no such file");
  if (name == "data_loss") return absl::DataLossError("shard is torn");
  if (name == "crash") std::abort();
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  const auto rest = cubit::ParseCommandLine(
      argc, argv, "Prints its flags.\n\nExample:\n  program --num_layers=3\n");
  std::printf("prompt [%s]\nnum_layers %d\nresume %d\n",
              absl::GetFlag(FLAGS_prompt).c_str(),
              absl::GetFlag(FLAGS_num_layers), absl::GetFlag(FLAGS_resume));
  for (const std::string& word : rest) std::printf("rest [%s]\n", word.c_str());
  char folder[4096];
  std::printf("folder [%s]\n", getcwd(folder, sizeof(folder)));
  std::fflush(stdout);
  return cubit::ExitStatus(Requested(absl::GetFlag(FLAGS_fail)));
}
