// SPDX-License-Identifier: Apache-2.0

#include "tests/runtime/mpirun.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace cubit {

bool HasMpirun() {
  const char* const path = std::getenv("PATH");
  const std::vector<std::string> folders =
      absl::StrSplit(path == nullptr ? "" : path, ':');
  return std::any_of(
      folders.begin(), folders.end(), [](const std::string& folder) {
        return access(absl::StrCat(folder, "/mpirun").c_str(), X_OK) == 0;
      });
}

std::vector<std::string> MpirunCommand(
    int num_ranks, const std::vector<std::string>& program) {
  // mpirun takes the path it is called by for a prefix, so env looks for it.
  // The ranks are no tests of their own, and must not write the test's report.
  std::vector<std::string> words = {"/usr/bin/env",
                                    "--unset=XML_OUTPUT_FILE",
                                    "--unset=TEST_PREMATURE_EXIT_FILE",
                                    "mpirun",
                                    "--allow-run-as-root",
                                    "--oversubscribe",
                                    "-np",
                                    absl::StrCat(num_ranks)};
  words.insert(words.end(), program.begin(), program.end());
  return words;
}

}  // namespace cubit
