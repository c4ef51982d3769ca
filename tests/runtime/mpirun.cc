// SPDX-License-Identifier: Apache-2.0

#include "tests/runtime/mpirun.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include "runtime/check.h"

namespace cubit {
namespace {

// Not bound: mpirun would give each of two ranks one processor, for all of its
// threads, and the same two to every other test that runs at the time.
std::vector<std::string> MpirunWords(int num_ranks) {
  return {
      "mpirun", "--allow-run-as-root",  "--bind-to", "none", "--oversubscribe",
      "-np",    absl::StrCat(num_ranks)};
}

// As the launcher does (launcher_rank.h), and as it must be before the ranks
// start: OpenBLAS looks when it is loaded.
void ShareProcessors(int num_ranks) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int usable =
      sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  const std::string threads = absl::StrCat(std::max(1, usable / num_ranks));
  setenv("CUBIT_NUM_THREADS", threads.c_str(), /*replace=*/0);
  setenv("OPENBLAS_NUM_THREADS", threads.c_str(), /*replace=*/0);
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
  ShareProcessors(num_ranks);
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
