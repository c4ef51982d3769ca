// SPDX-License-Identifier: Apache-2.0

#include "launch/launcher_job.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "launch/launcher_rank.h"
#include "launch/launcher_report.h"
#include "launch/worker_choice.h"
#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/host_name.h"
#include "runtime/logging.h"

namespace cubit {
namespace {

constexpr char kStopping[] =
    "stopping after this step (again: stop at once, without a checkpoint)";
// What is left in the pipes after the end of the starter arrives within this.
constexpr int kDrainMs = 200;
// How often, and how many times, to look whether killed workers are gone.
constexpr int kLookUs = 10'000;
constexpr int kLooks = 200;

void WriteAll(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(fd, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;  // nobody reads; the job goes on
    text.remove_prefix(static_cast<size_t>(count));
  }
}

// Whether the process runs a worker of this program. Another machine may have
// the name of this one, and its ranks other processes' numbers.
bool IsWorker(int pid) {
  std::array<char, 4096> path;
  const std::string link = absl::StrCat("/proc/", pid, "/exe");
  const ssize_t size = readlink(link.c_str(), path.data(), path.size());
  return size > 0 && absl::StartsWith({path.data(), static_cast<size_t>(size)},
                                      absl::StrCat(OwnPath(), "_"));
}

// Before a line of the launcher's own: rank 0 may show its progress.
void ClearProgress() {
  if (isatty(STDERR_FILENO) != 0) WriteAll(STDERR_FILENO, "\r\033[K");
}

sigset_t WatchedSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGCHLD, SIGINT, SIGTERM, SIGHUP}) {
    sigaddset(&set, signal);
  }
  return set;
}

// A started command, its output in two pipes. The command is asked to end when
// this process dies.
class Starter {
 public:
  absl::Status Start(const std::vector<std::string>& command,
                     const Environment& additions);
  ~Starter() {
    close(output_);
    close(errors_);
  }

  // How lines of mpirun's own begin.
  std::string line_prefix() const {
    return absl::StrFormat("[%s:%05d]", HostName(), pid_);
  }
  int output() const { return output_; }
  int errors() const { return errors_; }
  // Signals mpirun or srun alone, or it and what it started in its group.
  void Signal(int signal) const { kill(pid_, signal); }
  void SignalGroup(int signal) const { kill(-pid_, signal); }
  // Whether it has ended, with 128 + n for signal n in `status`.
  bool Ended(int* status) const;

 private:
  [[noreturn]] void Become(const std::vector<std::string>& command,
                           const Environment& additions, int output, int errors,
                           int failure) const;

  pid_t parent_ = -1;
  pid_t pid_ = -1;
  int output_ = -1;
  int errors_ = -1;
};

absl::Status Starter::Start(const std::vector<std::string>& command,
                            const Environment& additions) {
  int output[2];
  int errors[2];
  int failure[2];  // carries errno of exec
  if (pipe2(output, O_CLOEXEC) != 0 || pipe2(errors, O_CLOEXEC) != 0 ||
      pipe2(failure, O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("pipe: ", std::strerror(errno)));
  }
  parent_ = getpid();
  pid_ = fork();
  if (pid_ == 0) Become(command, additions, output[1], errors[1], failure[1]);
  close(output[1]);
  close(errors[1]);
  close(failure[1]);
  output_ = output[0];
  errors_ = errors[0];
  int code = pid_ < 0 ? errno : 0;
  if (pid_ > 0 && read(failure[0], &code, sizeof(code)) <= 0) code = 0;
  close(failure[0]);
  if (code == 0) return absl::OkStatus();
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
  return absl::NotFoundError(absl::StrCat(
      command[0], ": ", std::strerror(code),
      "; several ranks need it (Debian: openmpi-bin; in a Slurm job: srun)"));
}

// A group of its own: Ctrl-C on the terminal is for the launcher alone, which
// knows how to hand it on.
void Starter::Become(const std::vector<std::string>& command,
                     const Environment& additions, int output, int errors,
                     int failure) const {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent_) _exit(kExitFailed);
  const int nothing = open("/dev/null", O_RDONLY);
  dup2(nothing, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(errors, STDERR_FILENO);
  for (const auto& [name, value] : additions) {
    setenv(name.c_str(), value.c_str(), /*replace=*/1);
  }
  std::vector<char*> words;
  words.reserve(command.size() + 1);
  for (const std::string& word : command) {
    words.push_back(const_cast<char*>(word.c_str()));
  }
  words.push_back(nullptr);
  const sigset_t watched = WatchedSignals();
  sigprocmask(SIG_UNBLOCK, &watched, nullptr);
  execvp(words[0], words.data());
  const int code = errno;
  const ssize_t ignored = write(failure, &code, sizeof(code));
  (void)ignored;
  _exit(kExitWrongRequest);
}

bool Starter::Ended(int* status) const {
  int raw = 0;
  if (waitpid(pid_, &raw, WNOHANG) != pid_) return false;
  *status = WIFSIGNALED(raw) ? 128 + WTERMSIG(raw) : WEXITSTATUS(raw);
  return true;
}

class Job {
 public:
  absl::StatusOr<int> Run(const std::vector<std::string>& command,
                          const Environment& additions);

 private:
  int WaitMs() const;
  // Reads one pipe once; false at its end.
  bool ReadOutput();
  bool ReadErrors();
  void Drain();
  void OnReports(const std::vector<RankReport>& reports);
  void OnSignals(int fd);
  void OnInterrupt(int signal);
  void Act(JobWatch::Action action);
  void EndWorkersHere();
  int Conclude(int starter_status);

  std::string name_;  // of the starter: "mpirun"
  Starter starter_;
  OutputFilter filter_;
  JobWatch watch_;
  int interrupt_ = 0;
  bool killed_ = false;
  std::string resume_command_;
  std::set<int> workers_here_;  // process ids
};

absl::StatusOr<int> Job::Run(const std::vector<std::string>& command,
                             const Environment& additions) {
  const sigset_t watched = WatchedSignals();
  sigset_t before;
  sigprocmask(SIG_BLOCK, &watched, &before);
  signal(SIGPIPE, SIG_IGN);  // a reader of our output that goes
  name_ = command[0];
  absl::Status started = starter_.Start(command, additions);
  if (!started.ok()) {
    sigprocmask(SIG_SETMASK, &before, nullptr);
    return started;
  }
  filter_ = OutputFilter(starter_.line_prefix());
  const int signals = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
  CUBIT_CHECK_GE(signals, 0);
  std::array<pollfd, 3> files = {pollfd{signals, POLLIN, 0},
                                 pollfd{starter_.output(), POLLIN, 0},
                                 pollfd{starter_.errors(), POLLIN, 0}};
  int status = 0;
  while (!starter_.Ended(&status)) {
    poll(files.data(), files.size(), WaitMs());
    if (files[0].revents != 0) OnSignals(signals);
    // A pipe at its end is always ready: no longer looked at.
    if (files[1].revents != 0 && !ReadOutput()) files[1].fd = -1;
    if (files[2].revents != 0 && !ReadErrors()) files[2].fd = -1;
    Act(watch_.Due(JobWatch::Clock::now()));
  }
  Drain();
  EndWorkersHere();
  close(signals);
  return Conclude(status);
}

int Job::WaitMs() const {
  const auto next = watch_.NextTime();
  if (!next) return -1;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      *next - JobWatch::Clock::now());
  return static_cast<int>(std::max<int64_t>(0, left.count() + 1));
}

bool Job::ReadOutput() {
  char piece[65536];
  const ssize_t count = read(starter_.output(), piece, sizeof(piece));
  if (count < 0 && errno == EINTR) return true;
  if (count <= 0) return false;
  WriteAll(STDOUT_FILENO, {piece, static_cast<size_t>(count)});
  return true;
}

bool Job::ReadErrors() {
  char piece[65536];
  const ssize_t count = read(starter_.errors(), piece, sizeof(piece));
  if (count < 0 && errno == EINTR) return true;
  if (count <= 0) return false;
  std::vector<RankReport> reports;
  WriteAll(STDERR_FILENO,
           filter_.Feed({piece, static_cast<size_t>(count)}, &reports));
  OnReports(reports);
  return true;
}

// Ranks that outlive the starter for a moment hold the pipes open, so their end
// is not waited for.
void Job::Drain() {
  std::array<pollfd, 2> files = {pollfd{starter_.output(), POLLIN, 0},
                                 pollfd{starter_.errors(), POLLIN, 0}};
  while (poll(files.data(), files.size(), kDrainMs) > 0) {
    if (files[0].revents != 0 && !ReadOutput()) files[0].fd = -1;
    if (files[1].revents != 0 && !ReadErrors()) files[1].fd = -1;
    if (files[0].fd < 0 && files[1].fd < 0) break;
  }
  WriteAll(STDERR_FILENO, filter_.Flush());
}

void Job::OnReports(const std::vector<RankReport>& reports) {
  for (const RankReport& report : reports) {
    switch (report.kind) {
      case RankReport::Kind::kStarted:
        watch_.Started(report);
        if (report.host == HostName()) workers_here_.insert(report.pid);
        break;
      case RankReport::Kind::kResume:
        resume_command_ = report.text;
        break;
      case RankReport::Kind::kEnded:
        if (report.host == HostName()) workers_here_.erase(report.pid);
        if (watch_.Ended(report, JobWatch::Clock::now())) {
          ClearProgress();
          LogError(absl::StrCat(report.ToString(), "; the job ends"));
        }
        break;
    }
  }
}

void Job::OnSignals(int fd) {
  signalfd_siginfo info;
  while (read(fd, &info, sizeof(info)) == sizeof(info)) {
    const int signal = static_cast<int>(info.ssi_signo);
    if (signal == SIGINT || signal == SIGTERM) OnInterrupt(signal);
    // The terminal is gone; the ranks are asked to save.
    if (signal == SIGHUP && interrupt_ == 0) OnInterrupt(SIGTERM);
  }
}

void Job::OnInterrupt(int signal) {
  watch_.Interrupted(signal, JobWatch::Clock::now());
  if (interrupt_ == 0) {
    ClearProgress();
    LogInfo(kStopping);
    starter_.Signal(CarrierOf(signal));
  }
  killed_ = interrupt_ != 0;
  interrupt_ = signal;
}

void Job::Act(JobWatch::Action action) {
  if (action == JobWatch::Action::kStop) starter_.Signal(SIGTERM);
  if (action != JobWatch::Action::kKill) return;
  // Ranks on other hosts see that their parent is gone (launcher_rank.h).
  starter_.SignalGroup(SIGKILL);
  EndWorkersHere();
}

// Those whose end nobody told of: mpirun kills a rank and its hand at once.
void Job::EndWorkersHere() {
  for (const int pid : workers_here_) {
    if (IsWorker(pid)) kill(pid, SIGKILL);
  }
  const auto any = [this] {
    return std::any_of(workers_here_.begin(), workers_here_.end(), IsWorker);
  };
  for (int look = 0; look < kLooks && any(); ++look) usleep(kLookUs);
}

int Job::Conclude(int starter_status) {
  ClearProgress();
  if (killed_) {
    LogError("stopped at once, without a checkpoint");
    const sigset_t watched = WatchedSignals();
    signal(interrupt_, SIG_DFL);
    sigprocmask(SIG_UNBLOCK, &watched, nullptr);
    raise(interrupt_);
  }
  const int status = watch_.ExitStatus(starter_status);
  if (starter_status != 0 && !watch_.reason() && status != kExitInterrupted &&
      status != kExitTerminated) {
    WriteAll(STDERR_FILENO, filter_.withheld());
    LogError(absl::StrCat(name_, " ended with status ", starter_status,
                          watch_.any_started()
                              ? ", and no rank said why"
                              : " before any rank was started"));
  }
  if (!resume_command_.empty() && status != kExitDone &&
      status != kExitWrongRequest) {
    LogInfo(absl::StrCat("to go on: ", resume_command_));
  }
  return status;
}

}  // namespace

absl::StatusOr<int> RunJob(const std::vector<std::string>& command,
                           const Environment& additions) {
  return Job().Run(command, additions);
}

}  // namespace cubit
