// SPDX-License-Identifier: Apache-2.0
//
// A rank for launch_test. Joins the other ranks as a training run does, then
// does to its job what --rank_N=WHAT says (--all=WHAT for the others), where
// WHAT is "done", "wait" (for a signal, then a clean stop), "deaf" (ignores
// signals), "exit:STATUS" (at once) or "kill:SIGNAL" (itself). --config_N=TEXT
// is the configuration of rank N.

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "launch/bootstrap.h"
#include "launch/interrupt.h"
#include "launch/launcher_environment.h"
#include "runtime/command_line.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

std::string Flag(const std::string& name, const std::string& missing, int argc,
                 char** argv) {
  const std::string begin = "--" + name + "=";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind(begin, 0) == 0) return word.substr(begin.size());
  }
  return missing;
}

int NumberAfterColon(const std::string& task) {
  return std::atoi(task.substr(task.find(':') + 1).c_str());
}

absl::StatusOr<int> RunRank(int argc, char** argv) {
  CUBIT_ASSIGN_OR_RETURN(const Bootstrap ranks, StartRanks());
  if (ranks.world_size == 1) {
    LogInfo("alone");
    return kExitDone;
  }
  const std::string own = std::to_string(ranks.rank);
  const int nodes = std::atoi(Flag("nodes", "1", argc, argv).c_str());
  const int ranks_per_node =
      std::atoi(Flag("gpus_per_node", "0", argc, argv).c_str());
  CUBIT_RETURN_IF_ERROR(
      CheckAgreement(ranks, Flag("config_" + own, "seed: 0", argc, argv), nodes,
                     ranks_per_node));
  AnnounceResumeCommand(ranks, "train --resume");
  const std::string task =
      Flag("rank_" + own, Flag("all", "wait", argc, argv), argc, argv);
  InstallInterruptHandlers();
  if (task == "deaf") {
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
  }
  std::fprintf(stderr, "rank %d of %d: pid %d, local %d of %d, threads %s\n",
               ranks.rank, ranks.world_size, getpid(), ranks.local_rank,
               ranks.local_size, std::getenv("CUBIT_NUM_THREADS"));
  std::printf("output of rank %d\n", ranks.rank);
  std::fflush(stdout);
  ShowProgress("a line that goes on and on");
  if (task == "done") return kExitDone;
  if (task.rfind("exit:", 0) == 0) _exit(NumberAfterColon(task));
  if (task.rfind("kill:", 0) == 0) kill(getpid(), NumberAfterColon(task));
  while (InterruptSignal() == 0) usleep(10'000);
  usleep(200'000 * ranks.rank);  // the last rank's checkpoint takes longest
  LogWarning("saved by rank " + own);
  return 128 + InterruptSignal();
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  const absl::StatusOr<int> status = cubit::RunRank(argc, argv);
  return status.ok() ? *status : cubit::ExitStatus(status.status());
}
