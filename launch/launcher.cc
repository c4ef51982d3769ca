// SPDX-License-Identifier: Apache-2.0

#include "launch/launcher.h"

#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "launch/gpu_probe.h"
#include "launch/launcher_environment.h"
#include "launch/launcher_job.h"
#include "launch/launcher_plan.h"
#include "launch/launcher_rank.h"
#include "launch/worker_choice.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kMaxHostfileBytes = 16 << 20;

// `quiet`: another rank has said it.
absl::StatusOr<std::string> WorkerKind(
    const std::vector<std::string>& arguments, bool quiet) {
  CUBIT_ASSIGN_OR_RETURN(const WorkerChoice choice,
                         ChooseWorkerHere(arguments));
  if (!choice.warning.empty() && !quiet) LogWarning(choice.warning);
  return choice.kind;
}

absl::StatusOr<int> BeRank(const RankEnvironment& rank,
                           const std::vector<std::string>& arguments,
                           char** argv) {
  CUBIT_ASSIGN_OR_RETURN(const std::string kind,
                         WorkerKind(arguments, rank.rank != 0));
  CUBIT_RETURN_IF_ERROR(ShareHost(rank, kind));
  if (std::getenv(kLauncherVariable) == nullptr) {
    return BecomeWorker(kind, argv);
  }
  return RunRank(absl::StrCat(OwnPath(), "_", kind), argv, rank);
}

absl::StatusOr<LaunchSite> LookAround(const LaunchRequest& request,
                                      const std::string& kind) {
  LaunchSite site;
  site.environment = ReadEnvironment();
  site.num_gpus = kind == "cuda" ? ProbeGpus().num_gpus : 0;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    site.num_processors = CPU_COUNT(&set);
  }
  site.is_root = geteuid() == 0;
  if (!request.hostfile.empty()) {
    CUBIT_ASSIGN_OR_RETURN(
        const std::string text,
        ReadFile(FileSystem::Posix(), request.hostfile, kMaxHostfileBytes));
    site.hosts = HostsOf(text);
  }
  return site;
}

// What the ranks need to know of the launcher: that it is there, and how wide
// the terminal is on which rank 0 shows its progress.
Environment ForRanks() {
  Environment result = {{kLauncherVariable, "1"}};
  winsize size = {};
  if (isatty(STDERR_FILENO) != 0) {
    ioctl(STDERR_FILENO, TIOCGWINSZ, &size);
    result[kTerminalWidthVariable] =
        absl::StrCat(size.ws_col == 0 ? 80 : size.ws_col);
  }
  return result;
}

absl::StatusOr<int> Launch(const std::vector<std::string>& arguments,
                           char** argv) {
  // Ranks on other hosts start in the folder of mpirun and srun.
  if (const char* folder = std::getenv("BUILD_WORKING_DIRECTORY")) {
    if (chdir(folder) != 0) {
      return absl::NotFoundError(absl::StrCat("cannot move to ", folder));
    }
  }
  const LaunchRequest request = ReadLaunchRequest(arguments);
  const absl::StatusOr<std::string> kind =
      WorkerKind(arguments, /*quiet=*/false);
  // The machine that starts a Slurm job's ranks may have no GPU itself.
  if (!kind.ok() && std::getenv("SLURM_JOB_ID") == nullptr) {
    return kind.status();
  }
  CUBIT_ASSIGN_OR_RETURN(LaunchSite site,
                         LookAround(request, kind.value_or("cpu")));
  Environment environment = ForRanks();
  site.environment.insert(environment.begin(), environment.end());
  CUBIT_ASSIGN_OR_RETURN(const LaunchPlan plan, PlanLaunch(request, site));
  if (plan.kind == LaunchPlan::Kind::kOneRank) {
    return kind.ok() ? BecomeWorker(*kind, argv) : kind.status();
  }
  LogInfo(plan.first_line);
  environment.insert(plan.environment.begin(), plan.environment.end());
  std::vector<std::string> command = plan.command;
  command.push_back(OwnPath());
  command.insert(command.end(), plan.arguments.begin(), plan.arguments.end());
  command.insert(command.end(), arguments.begin(), arguments.end());
  return RunJob(command, environment);
}

}  // namespace

int LauncherMain(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const std::optional<RankEnvironment> rank = RankOf(ReadEnvironment());
  const absl::StatusOr<int> status =
      rank ? BeRank(*rank, arguments, argv) : Launch(arguments, argv);
  return status.ok() ? *status : ExitStatus(status.status());
}

}  // namespace cubit
