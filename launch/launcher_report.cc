// SPDX-License-Identifier: Apache-2.0

#include "launch/launcher_report.h"

#include <signal.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

#include "runtime/command_line.h"

namespace cubit {
namespace {

// No text of a rank has these characters.
constexpr char kRecordBegin[] =
    "\x01"
    "cubit ";
constexpr char kRecordEnd[] = "\x02\n";
constexpr size_t kMaxRecord = 4000;
constexpr size_t kMaxSaid = 64;

constexpr absl::string_view kRule = "----------------------------------------";

// launch/interrupt.h says this on every rank; the launcher says it once.
constexpr absl::string_view kStopping = "stopping after this step (again: ";
// Beginnings of lines that are not the ranks' own words.
constexpr absl::string_view kStarterLines[] = {"mpirun: ", kStopping};
// Beginnings of lines of Slurm, and words of those that tell of ranks that
// ended; others ("Job step creation temporarily disabled") pass.
constexpr absl::string_view kSlurmLines[] = {"srun: ", "slurmstepd"};
constexpr absl::string_view kSlurmOnEnds[] = {
    ": task ",     ": tasks ", "Terminating StepId", "Job step aborted",
    "step_signal", "forcing",  "CANCELLED AT",       "mpi/pmix"};
// In blocks between rules that tell of ranks that ended.
constexpr absl::string_view kBlocksOnEnds[] = {
    "Primary job  terminated normally",
    "noticed that process rank",
    "detected that one or more processes exited",
    "has exited due to process rank",
    "MPI_ABORT was invoked",
    "A process or daemon was unable to complete a TCP connection",
    "ORTE has lost communication with a remote daemon",
    "mpirun was unable to cleanly terminate the daemons"};
// Open MPI's "[host:123] 2 more processes have sent help message ...".
constexpr absl::string_view kRepeats[] = {"have sent help message help-",
                                          "Set MCA parameter \"orte_base_help"};

bool ContainsAny(absl::string_view text, const absl::string_view* begin,
                 const absl::string_view* end) {
  return std::any_of(begin, end, [text](absl::string_view word) {
    return absl::StrContains(text, word);
  });
}

bool StartsWithAny(absl::string_view text, const absl::string_view* begin,
                   const absl::string_view* end) {
  return std::any_of(begin, end, [text](absl::string_view word) {
    return absl::StartsWith(text, word);
  });
}

bool IsRule(absl::string_view line) {
  line = absl::StripSuffix(line, "\n");
  return line.size() >= kRule.size() &&
         line.find_first_not_of('-') == absl::string_view::npos;
}

// Whether the beginning of a line may become a rule or a starter's line.
bool MayBeStarters(absl::string_view begin) {
  if (begin.empty() || begin[0] == '[') return true;
  if (begin.find_first_not_of('-') == absl::string_view::npos) return true;
  const auto may_become = [begin](absl::string_view word) {
    const size_t size = std::min(word.size(), begin.size());
    return word.substr(0, size) == begin.substr(0, size);
  };
  return std::any_of(std::begin(kStarterLines), std::end(kStarterLines),
                     may_become) ||
         std::any_of(std::begin(kSlurmLines), std::end(kSlurmLines),
                     may_become);
}

std::optional<RankReport> DecodeReport(absl::string_view record) {
  const std::vector<std::string> words = absl::StrSplit(record, '\x1f');
  RankReport report;
  int kind = 0;
  if (words.size() != 7 || !absl::SimpleAtoi(words[0], &kind) || kind < 0 ||
      kind > static_cast<int>(RankReport::Kind::kResume) ||
      !absl::SimpleAtoi(words[1], &report.rank) ||
      !absl::SimpleAtoi(words[3], &report.pid) ||
      !absl::SimpleAtoi(words[4], &report.status) ||
      !absl::SimpleAtoi(words[5], &report.signal)) {
    return std::nullopt;
  }
  report.kind = static_cast<RankReport::Kind>(kind);
  report.host = words[2];
  report.text = words[6];
  return report;
}

const char* SignalName(int number) {
  const char* name = sigabbrev_np(number);
  return name == nullptr ? "?" : name;
}

absl::string_view Meaning(int status) {
  switch (status) {
    case kExitWrongRequest:
      return " (a wrong request or bad input)";
    case kExitHung:
      return " (hung, ended by the watchdog)";
    case kExitOtherHardware:
      return " (this hardware)";
    default:
      return "";
  }
}

}  // namespace

std::string RankReport::ToString() const {
  const std::string who =
      absl::StrCat("rank ", rank, " (", host, ", pid ", pid, "): ");
  switch (kind) {
    case Kind::kStarted:
      return absl::StrCat(who, "started");
    case Kind::kResume:
      return absl::StrCat(who, "resume with ", text);
    case Kind::kEnded:
      break;
  }
  if (signal != 0) {
    return absl::StrCat(who, "killed by signal ", signal, " (SIG",
                        SignalName(signal), ")");
  }
  return absl::StrCat(who, "ended with exit status ", status, Meaning(status));
}

std::string EncodeReport(const RankReport& report) {
  const std::string head = absl::StrCat(
      kRecordBegin,
      absl::StrJoin(std::make_tuple(static_cast<int>(report.kind), report.rank,
                                    report.host, report.pid, report.status,
                                    report.signal),
                    "\x1f"),
      "\x1f");
  return absl::StrCat(head, report.text.substr(0, kMaxRecord - head.size()),
                      kRecordEnd);
}

std::string OutputFilter::Feed(absl::string_view piece,
                               std::vector<RankReport>* reports) {
  raw_.append(piece.data(), piece.size());
  std::string shown;
  while (true) {
    const size_t begin = raw_.find(kRecordBegin[0]);
    shown += Show(absl::string_view(raw_).substr(0, begin));
    raw_.erase(0, std::min(begin, raw_.size()));
    const size_t end = raw_.find(kRecordEnd);
    if (end == std::string::npos) break;
    absl::string_view record = absl::string_view(raw_).substr(0, end);
    if (absl::ConsumePrefix(&record, kRecordBegin)) {
      if (const auto report = DecodeReport(record)) reports->push_back(*report);
    }
    raw_.erase(0, end + std::strlen(kRecordEnd));
  }
  if (raw_.size() > 2 * kMaxRecord) shown += Show(std::exchange(raw_, ""));
  return shown;
}

std::string OutputFilter::Show(absl::string_view text) {
  std::string shown;
  line_.append(text.data(), text.size());
  size_t begin = 0;
  for (size_t end = line_.find('\n'); end != std::string::npos;
       end = line_.find('\n', begin)) {
    ShowLine(absl::string_view(line_).substr(begin, end + 1 - begin), &shown);
    line_begins_ = true;
    begin = end + 1;
  }
  line_.erase(0, begin);
  if (line_.empty()) return shown;
  if (block_.empty() && !(line_begins_ && MayBeStarters(line_))) {
    shown += std::exchange(line_, "");
    line_begins_ = false;
  }
  return shown;
}

bool OutputFilter::IsStarterLine(absl::string_view line) const {
  if (!starter_.empty() && absl::StartsWith(line, starter_)) return true;
  if (absl::StartsWith(line, "[") &&
      ContainsAny(line, std::begin(kRepeats), std::end(kRepeats))) {
    return true;
  }
  if (StartsWithAny(line, std::begin(kSlurmLines), std::end(kSlurmLines))) {
    return ContainsAny(line, std::begin(kSlurmOnEnds), std::end(kSlurmOnEnds));
  }
  return StartsWithAny(line, std::begin(kStarterLines),
                       std::end(kStarterLines));
}

// Rank 0 has no prefix (runtime/logging.h).
bool OutputFilter::WasSaidByAnother(absl::string_view line) {
  absl::string_view words = line;
  const size_t end = line.find("] ");
  if (absl::StartsWith(line, "[rank ") && end != absl::string_view::npos) {
    words.remove_prefix(end + 2);
  }
  if (!absl::StartsWith(words, "warning: ") &&
      !absl::StartsWith(words, "error: ")) {
    return false;
  }
  const std::string prefix(line.substr(0, line.size() - words.size()));
  for (const auto& [who, what] : said_) {
    if (what == words) return who != prefix;
  }
  said_.emplace_back(prefix, std::string(words));
  if (said_.size() > kMaxSaid) said_.pop_front();
  return false;
}

void OutputFilter::ShowLine(absl::string_view line, std::string* shown) {
  const bool rule = line_begins_ && IsRule(line);
  if (!block_.empty() || rule) {
    const bool ends = rule && !block_.empty();
    absl::StrAppend(&block_, line);
    if (!ends) return;
    const bool hide =
        ContainsAny(block_, std::begin(kBlocksOnEnds), std::end(kBlocksOnEnds));
    (hide ? withheld_ : *shown) += std::exchange(block_, "");
    return;
  }
  const bool hide = line_begins_ && IsStarterLine(line);
  if (hide && absl::StartsWith(line, kStopping)) {
    // It comes with a line end of its own, to clear a line of progress.
    if (absl::EndsWith(*shown, "\n\n") || *shown == "\n") shown->pop_back();
    return;
  }
  if (!hide && line_begins_ && WasSaidByAnother(line)) return;
  absl::StrAppend(hide ? &withheld_ : shown, line);
}

std::string OutputFilter::Flush() {
  std::string rest = std::exchange(block_, "");
  absl::StrAppend(&rest, line_, raw_);
  line_.clear();
  raw_.clear();
  return rest;
}

int StatusOfEnd(const RankReport& report, int interrupt_signal) {
  if (report.signal != 0) {
    return report.signal == interrupt_signal ? 128 + interrupt_signal
                                             : kExitFailed;
  }
  switch (report.status) {
    case kExitDone:
    case kExitWrongRequest:
    case kExitFailed:
    case kExitHung:
    case kExitOtherHardware:
    case kExitInterrupted:
    case kExitTerminated:
      return report.status;
    default:
      return kExitFailed;
  }
}

int WorseStatus(int a, int b) {
  constexpr std::array<int, 7> kWorstFirst = {
      kExitOtherHardware, kExitWrongRequest, kExitHung, kExitFailed,
      kExitTerminated,    kExitInterrupted,  kExitDone};
  for (const int status : kWorstFirst) {
    if (a == status || b == status) return status;
  }
  return kExitFailed;
}

void JobWatch::Started(const RankReport& /*report*/) { ++num_started_; }

bool JobWatch::Ended(const RankReport& report, Time now) {
  const int status = StatusOfEnd(report, interrupt_);
  // Once the job is being ended, ranks die of that.
  if (reason_ && report.signal != 0) return false;
  worst_ = WorseStatus(worst_, status);
  const bool bad = status != kExitDone && status != kExitInterrupted &&
                   status != kExitTerminated;
  if (!bad || reason_) return false;
  reason_ = report;
  stop_at_ = now + kUntilStop;
  kill_at_ = now + kUntilKill;
  return true;
}

void JobWatch::Interrupted(int signal, Time now) {
  if (interrupt_ != 0) {
    kill_at_ = now;
    stop_at_.reset();
    return;
  }
  interrupt_ = signal;
  if (!kill_at_) kill_at_ = now + kGrace;
}

JobWatch::Action JobWatch::Due(Time now) {
  if (kill_at_ && now >= *kill_at_) {
    kill_at_.reset();
    stop_at_.reset();
    return Action::kKill;
  }
  if (stop_at_ && now >= *stop_at_) {
    stop_at_.reset();
    return Action::kStop;
  }
  return Action::kNone;
}

std::optional<JobWatch::Time> JobWatch::NextTime() const {
  if (stop_at_ && kill_at_) return std::min(*stop_at_, *kill_at_);
  return stop_at_ ? stop_at_ : kill_at_;
}

int JobWatch::ExitStatus(int starter_status) const {
  if (worst_ != kExitDone || starter_status == 0) return worst_;
  // No rank said why. Before any of them ran, nothing was changed.
  return any_started() ? kExitFailed : kExitWrongRequest;
}

}  // namespace cubit
