// SPDX-License-Identifier: Apache-2.0
//
// What ranks tell their launcher, and what it makes of it: records in the
// stream of standard error, the filter that takes them out again, and the
// judgement of a job from the ends of its ranks. No processes here.

#ifndef CUBIT_LAUNCH_LAUNCHER_REPORT_H_
#define CUBIT_LAUNCH_LAUNCHER_REPORT_H_

#include <chrono>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace cubit {

// A record is one write of less than 4096 bytes, which a pipe keeps whole.
struct RankReport {
  enum class Kind { kStarted, kEnded, kResume };

  Kind kind = Kind::kStarted;
  int rank = 0;
  std::string host;
  int pid = 0;
  int status = 0;    // kEnded: exit status
  int signal = 0;    // kEnded: the signal that killed the rank; 0: none
  std::string text;  // kResume: the command that goes on with the run

  // "rank 2 (node1, pid 71): killed by signal 9 (SIGKILL)".
  std::string ToString() const;
};
std::string EncodeReport(const RankReport& report);

// Cuts the standard error of a job, which arrives in pieces, into what ranks
// said and their records, and withholds what mpirun and srun say about ranks
// that ended: the launcher says it better. A warning or error that several
// ranks give in the same words passes once. Text of ranks passes at once, also
// lines that are not ended.
class OutputFilter {
 public:
  OutputFilter() = default;
  // `starter`: how lines of mpirun itself begin, "[node1:00071]".
  explicit OutputFilter(std::string starter) : starter_(std::move(starter)) {}

  // The text to show; records are added to `reports`.
  std::string Feed(absl::string_view piece, std::vector<RankReport>* reports);
  // What was held back for the rest of a line, at the end of the stream.
  std::string Flush();
  // What mpirun and srun said about ended ranks.
  const std::string& withheld() const { return withheld_; }

 private:
  std::string Show(absl::string_view text);
  // `line` is whole, with its end.
  void ShowLine(absl::string_view line, std::string* shown);

  bool IsStarterLine(absl::string_view line) const;
  bool WasSaidByAnother(absl::string_view line);

  std::string starter_;
  std::string raw_;   // may be the beginning of a record
  std::string line_;  // may be the beginning of a line to withhold
  bool line_begins_ = true;
  std::string block_;  // between two rules of dashes; "" outside
  std::string withheld_;
  // The last warnings and errors with the prefixes of their ranks.
  std::deque<std::pair<std::string, std::string>> said_;
};

// The course of a job. Times are handed in, so that tests need none.
class JobWatch {
 public:
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;
  // kStop: ask the starter (mpirun, srun) to end the ranks; kKill: end what is
  // left of the job at once.
  enum class Action { kNone, kStop, kKill };

  // After a rank's bad end mpirun and srun end the others by themselves. If
  // they have not within the first time they are asked to, and killed after the
  // second. (mpirun may crash if it is asked while it is at it.)
  static constexpr std::chrono::seconds kUntilStop{3};
  static constexpr std::chrono::seconds kUntilKill{6};
  // After SIGINT or SIGTERM: for the step and its checkpoint.
  static constexpr std::chrono::seconds kGrace{600};

  void Started(const RankReport& report);
  // Whether it is the first bad end: the reason of the job's end.
  bool Ended(const RankReport& report, Time now);
  // SIGINT or SIGTERM for the job.
  void Interrupted(int signal, Time now);

  // What is due now, each once.
  Action Due(Time now);
  // When Due may next have something.
  std::optional<Time> NextTime() const;

  bool any_started() const { return num_started_ > 0; }
  const std::optional<RankReport>& reason() const { return reason_; }

  // The status of the job when `starter_status` (128 + n for signal n) is that
  // of mpirun or srun: the worst of the ranks by meaning. What ranks do after
  // the first bad end is a consequence of it, unless they exit with a status of
  // ours.
  int ExitStatus(int starter_status) const;

 private:
  std::optional<Time> stop_at_;
  std::optional<Time> kill_at_;
  std::optional<RankReport> reason_;
  int interrupt_ = 0;
  int num_started_ = 0;
  int worst_ = 0;  // exit status
};

// The exit status of one rank in the words of docs/reliability.md: a signal is
// a failed run (2), but for the one that was sent to the job.
int StatusOfEnd(const RankReport& report, int interrupt_signal);
// The worse of two exit statuses: 4, 1, 3, 2, 143, 130, 0, worst first.
int WorseStatus(int a, int b);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_LAUNCHER_REPORT_H_
