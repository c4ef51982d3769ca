// SPDX-License-Identifier: Apache-2.0

#include "tests/runtime/mpirun.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include "runtime/check.h"

namespace cubit {
namespace {

std::vector<std::string> MpirunWords(int num_ranks) {
  return {"mpirun", "--allow-run-as-root", "--oversubscribe", "-np",
          absl::StrCat(num_ranks)};
}

}  // namespace

bool HasMpirun() {
  const char* const path = std::getenv("PATH");
  const std::vector<std::string> folders =
      absl::StrSplit(path == nullptr ? "" : path, ':');
  return std::any_of(
      folders.begin(), folders.end(), [](const std::string& folder) {
        return access(absl::StrCat(folder, "/mpirun").c_str(), X_OK) == 0;
      });
}

void BecomeMpirun(int num_ranks, const std::vector<std::string>& arguments) {
  std::string path(4096, '\0');
  const ssize_t length = readlink("/proc/self/exe", path.data(), path.size());
  CUBIT_CHECK(length > 0);
  std::vector<std::string> words = MpirunWords(num_ranks);
  words.push_back(path.substr(0, static_cast<size_t>(length)));
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  execvp(pointers[0], pointers.data());
}

std::vector<std::string> MpirunCommand(
    int num_ranks, const std::vector<std::string>& program) {
  // mpirun takes the path it is called by for a prefix, so env looks for it.
  // The ranks are no tests of their own, and must not write the test's report.
  std::vector<std::string> words = {"/usr/bin/env", "--unset=XML_OUTPUT_FILE",
                                    "--unset=TEST_PREMATURE_EXIT_FILE"};
  const std::vector<std::string> mpirun = MpirunWords(num_ranks);
  words.insert(words.end(), mpirun.begin(), mpirun.end());
  words.insert(words.end(), program.begin(), program.end());
  return words;
}

}  // namespace cubit
