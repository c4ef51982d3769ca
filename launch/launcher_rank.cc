// SPDX-License-Identifier: Apache-2.0

#include "launch/launcher_rank.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"

#include "launch/gpu_probe.h"
#include "launch/launcher_report.h"
#include "runtime/command_line.h"
#include "runtime/host_name.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// How often a rank looks whether mpirun or srun is still there.
constexpr timespec kLook = {0, 200'000'000};

void Tell(RankReport report, const RankEnvironment& rank, pid_t pid) {
  report.rank = rank.rank;
  report.host = HostName();
  report.pid = pid;
  const std::string text = EncodeReport(report);
  const ssize_t ignored = write(STDERR_FILENO, text.data(), text.size());
  (void)ignored;  // the launcher is gone
}

sigset_t HandledSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal :
       {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2}) {
    sigaddset(&set, signal);
  }
  return set;
}

// A group of its own: a signal for the group of this process, which mpirun
// sends, would reach the worker besides the one that is meant for it. Carriers
// are ignored because srun sends them to every process.
[[noreturn]] void BecomeRankWorker(const std::string& worker, char** argv,
                                   pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kExitFailed);
  signal(CarrierOf(SIGINT), SIG_IGN);
  signal(CarrierOf(SIGTERM), SIG_IGN);
  const sigset_t handled = HandledSignals();
  sigprocmask(SIG_UNBLOCK, &handled, nullptr);
  execv(worker.c_str(), argv);
  std::fprintf(stderr, "error: %s: %s\n", worker.c_str(), std::strerror(errno));
  _exit(kExitWrongRequest);
}

// The wait status of the worker, once it has ended.
int Attend(pid_t worker, const RankEnvironment& rank, pid_t starter) {
  const sigset_t handled = HandledSignals();
  int status = 0;
  while (waitpid(worker, &status, WNOHANG) == 0) {
    const int signal = sigtimedwait(&handled, nullptr, &kLook);
    if (getppid() != starter) {
      kill(worker, SIGKILL);
    } else if (signal == CarrierOf(SIGINT)) {
      kill(worker, SIGINT);
    } else if (signal == CarrierOf(SIGTERM)) {
      kill(worker, SIGTERM);
    } else if (signal == SIGTERM || signal == SIGINT || signal == SIGHUP) {
      // srun has sent it to the worker, too.
      if (rank.starter != RankEnvironment::Starter::kSrun) {
        kill(worker, signal);
      }
    }
  }
  return status;
}

}  // namespace

int CarrierOf(int signal) { return signal == SIGINT ? SIGUSR1 : SIGUSR2; }

absl::Status ShareHost(const RankEnvironment& rank, const std::string& kind) {
  if (kind == "cuda") {
    CUBIT_ASSIGN_OR_RETURN(
        const std::string gpu,
        VisibleGpuOfRank(rank, ReadEnvironment(), ProbeGpus().num_gpus));
    setenv("CUDA_VISIBLE_DEVICES", gpu.c_str(), /*replace=*/1);
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  const int usable =
      sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  const int online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const std::string threads = absl::StrCat(ThreadsOfRank(rank, usable, online));
  setenv("CUBIT_NUM_THREADS", threads.c_str(), /*replace=*/0);
  setenv("OPENBLAS_NUM_THREADS", threads.c_str(), /*replace=*/0);
  return absl::OkStatus();
}

int RunRank(const std::string& worker, char** argv,
            const RankEnvironment& rank) {
  const pid_t starter = getppid();
  const sigset_t handled = HandledSignals();
  sigprocmask(SIG_BLOCK, &handled, nullptr);
  const pid_t self = getpid();
  const pid_t child = fork();
  if (child == 0) BecomeRankWorker(worker, argv, self);
  if (child < 0) {
    std::fprintf(stderr, "error: fork: %s\n", std::strerror(errno));
    return kExitFailed;
  }
  Tell(RankReport(), rank, child);
  const int status = Attend(child, rank, starter);
  RankReport end;
  end.kind = RankReport::Kind::kEnded;
  end.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  end.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + end.signal;
  Tell(end, rank, child);
  const bool clean =
      end.status == kExitInterrupted || end.status == kExitTerminated;
  return clean ? kExitDone : end.status;
}

}  // namespace cubit
