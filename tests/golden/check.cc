// SPDX-License-Identifier: Apache-2.0

#include <iostream>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "runtime/command_line.h"
#include "tests/golden/golden_check.h"

namespace {

constexpr char kUsage[] = R"(Checks the mixers against golden values.

Every tensor of every .h5 file in a folder is compared with the plain reference
in double and with the ops of this build. One line a tensor; exit status 1 if
one is past its tolerance or a file cannot be read.

Example:
  bazel run //tests/golden:check -- golden
)";

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments =
      cubit::ParseCommandLine(argc, argv, kUsage);
  if (arguments.size() != 1) {
    return cubit::ExitStatus(absl::InvalidArgumentError(
        "wanted one argument, the folder of the .h5 files: "
        "bazel run //tests/golden:check -- FOLDER"));
  }
  return cubit::ExitStatus(cubit::golden::CheckFolder(arguments[0], std::cout));
}
