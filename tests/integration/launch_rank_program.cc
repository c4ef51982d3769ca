// SPDX-License-Identifier: Apache-2.0
//
// A rank for launch_test: does to its job what --rank_N=WHAT says, where WHAT
// is "done", "wait" (for a signal, then a clean stop), "deaf" (ignores
// signals), "exit:STATUS" or "kill:SIGNAL" (itself). Others wait.

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "launch/interrupt.h"
#include "launch/launcher_environment.h"

namespace {

std::string TaskOf(int rank, int argc, char** argv) {
  const std::string flag = "--rank_" + std::to_string(rank) + "=";
  std::string task = "wait";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--all=", 0) == 0) task = word.substr(6);
  }
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind(flag, 0) == 0) task = word.substr(flag.size());
  }
  return task;
}

int NumberAfterColon(const std::string& task) {
  return std::atoi(task.substr(task.find(':') + 1).c_str());
}

}  // namespace

int main(int argc, char** argv) {
  const auto rank = cubit::RankOf(cubit::ReadEnvironment());
  if (!rank) {
    std::fprintf(stderr, "alone\n");
    return 0;
  }
  const std::string task = TaskOf(rank->rank, argc, argv);
  cubit::InstallInterruptHandlers();
  if (task == "deaf") {
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
  }
  std::fprintf(stderr, "rank %d of %d: pid %d, threads %s\n", rank->rank,
               rank->world_size, getpid(), std::getenv("CUBIT_NUM_THREADS"));
  std::printf("output of rank %d\n", rank->rank);
  std::fflush(stdout);
  if (task == "done") return 0;
  if (task.rfind("exit:", 0) == 0) return NumberAfterColon(task);
  if (task.rfind("kill:", 0) == 0) kill(getpid(), NumberAfterColon(task));
  while (cubit::InterruptSignal() == 0) usleep(10'000);
  usleep(200'000 * rank->rank);  // the last checkpoint takes longest
  std::fprintf(stderr, "saved by rank %d\n", rank->rank);
  return 128 + cubit::InterruptSignal();
}
