// SPDX-License-Identifier: Apache-2.0

#include "runtime/watchdog_report.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

#include "runtime/command_line.h"

namespace cubit {
namespace {

using Group = WatchdogMessage::Group;
using Operation = WatchdogMessage::Operation;

// Ranks that a report describes.
constexpr size_t kMaxLines = 64;

std::string Seconds(double seconds) {
  return absl::StrFormat("%.3gs", seconds);
}

// An operation that a rank waits in.
struct Wait {
  const WatchedRank* rank = nullptr;
  const Group* group = nullptr;
  const Operation* operation = nullptr;
};

struct Attendance {
  std::vector<const WatchedRank*> arrived;
  std::vector<const WatchedRank*> missing;
};

const Group* FindGroup(const WatchedRank& rank, const std::string& name) {
  for (const Group& group : rank.heartbeat.groups()) {
    if (group.name() == name) return &group;
  }
  return nullptr;
}

bool IsMessage(const Operation& operation) { return operation.peer() >= 0; }

Attendance AttendanceOf(const Wait& wait,
                        const std::vector<WatchedRank>& ranks) {
  Attendance result;
  for (const WatchedRank& rank : ranks) {
    const Group* const group = FindGroup(rank, wait.group->name());
    if (group == nullptr) continue;
    if (IsMessage(*wait.operation)) {
      if (&rank == wait.rank) {
        result.arrived.push_back(&rank);
      } else if (group->rank() == wait.operation->peer()) {
        result.missing.push_back(&rank);
      }
    } else if (group->num_collectives() > wait.operation->sequence()) {
      result.arrived.push_back(&rank);
    } else {
      result.missing.push_back(&rank);
    }
  }
  return result;
}

bool WaitsForSomebody(const WatchedRank& rank) {
  return std::any_of(
      rank.heartbeat.groups().begin(), rank.heartbeat.groups().end(),
      [](const Group& group) { return group.pending_size() > 0; });
}

// Pending for longer than `seconds`, the longest first.
std::vector<Wait> WaitsBeyond(const std::vector<WatchedRank>& ranks,
                              double seconds) {
  std::vector<Wait> waits;
  for (const WatchedRank& rank : ranks) {
    if (rank.state != WatchedRank::State::kHere) continue;
    for (const Group& group : rank.heartbeat.groups()) {
      for (const Operation& operation : group.pending()) {
        if (operation.seconds() < seconds) continue;
        waits.push_back({&rank, &group, &operation});
      }
    }
  }
  std::stable_sort(waits.begin(), waits.end(),
                   [](const Wait& a, const Wait& b) {
                     return a.operation->seconds() > b.operation->seconds();
                   });
  return waits;
}

// The one whose missing rank waits for nobody, or the longest.
const Wait& Root(const std::vector<Wait>& waits,
                 const std::vector<WatchedRank>& ranks) {
  for (const Wait& wait : waits) {
    for (const WatchedRank* missing : AttendanceOf(wait, ranks).missing) {
      if (!WaitsForSomebody(*missing)) return wait;
    }
  }
  return waits.front();
}

std::string JoinNames(const std::vector<const WatchedRank*>& ranks) {
  if (ranks.empty()) return "none";
  return absl::StrJoin(ranks, ", ",
                       [](std::string* out, const WatchedRank* rank) {
                         out->append(NameOf(*rank));
                       });
}

std::string DescribeWait(const Wait& wait, double limit) {
  return absl::StrFormat(
      "%s has waited for %s (limit %s) in %s of group \"%s\"",
      NameOf(*wait.rank), Seconds(wait.operation->seconds()), Seconds(limit),
      wait.operation->text(), wait.group->name());
}

// `first` and a line for each rank: those of `concerned` before the others.
WatchdogMessage::Verdict MakeVerdict(int exit_status, const std::string& first,
                                     std::vector<const WatchedRank*> concerned,
                                     const std::vector<WatchedRank>& ranks) {
  for (const WatchedRank& rank : ranks) {
    if (std::find(concerned.begin(), concerned.end(), &rank) ==
        concerned.end()) {
      concerned.push_back(&rank);
    }
  }
  std::string report = first;
  for (size_t i = 0; i < std::min(concerned.size(), kMaxLines); ++i) {
    absl::StrAppend(&report, "\n  ", DescribeRank(*concerned[i]));
  }
  if (concerned.size() > kMaxLines) {
    absl::StrAppend(&report, "\n  and ", concerned.size() - kMaxLines,
                    " more ranks");
  }
  absl::StrAppend(&report,
                  "\nAll ranks end. The run can be resumed from its last "
                  "checkpoint with --resume.");
  WatchdogMessage::Verdict verdict;
  verdict.set_exit_status(exit_status);
  verdict.set_report(std::move(report));
  return verdict;
}

std::optional<WatchdogMessage::Verdict> JudgeEnds(
    const std::vector<WatchedRank>& ranks) {
  for (const WatchedRank& rank : ranks) {
    if (rank.error.empty()) continue;
    return MakeVerdict(kExitFailed,
                       absl::StrCat("watchdog: ", NameOf(rank),
                                    " ended with an error: ", rank.error),
                       {&rank}, ranks);
  }
  for (const WatchedRank& rank : ranks) {
    if (rank.state != WatchedRank::State::kLost) continue;
    return MakeVerdict(
        kExitFailed,
        absl::StrCat("watchdog: ", NameOf(rank),
                     " ended without a word: killed, crashed or cut off"),
        {&rank}, ranks);
  }
  return std::nullopt;
}

bool IsSilent(const WatchedRank& rank, double limit) {
  return rank.state == WatchedRank::State::kHere &&
         rank.silent_seconds >= limit;
}

std::optional<WatchdogMessage::Verdict> JudgeSilence(
    const std::vector<WatchedRank>& ranks, double limit) {
  std::vector<const WatchedRank*> silent;
  for (const WatchedRank& rank : ranks) {
    if (IsSilent(rank, limit)) silent.push_back(&rank);
  }
  if (silent.empty()) return std::nullopt;
  return MakeVerdict(
      kExitHung,
      absl::StrFormat("watchdog: %s silent for %s (limit %s): stopped, "
                      "overloaded or cut off",
                      JoinNames(silent), Seconds(silent[0]->silent_seconds),
                      Seconds(limit)),
      silent, ranks);
}

std::optional<WatchdogMessage::Verdict> JudgeOperations(
    const std::vector<WatchedRank>& ranks, double limit) {
  const std::vector<Wait> waits = WaitsBeyond(ranks, limit);
  if (waits.empty()) return std::nullopt;
  const Wait& root = Root(waits, ranks);
  const Attendance attendance = AttendanceOf(root, ranks);
  std::vector<const WatchedRank*> concerned = attendance.missing;
  concerned.insert(concerned.end(), attendance.arrived.begin(),
                   attendance.arrived.end());
  return MakeVerdict(
      kExitHung,
      absl::StrFormat("watchdog: hung: %s: arrived: %s; not arrived: %s",
                      DescribeWait(root, limit), JoinNames(attendance.arrived),
                      JoinNames(attendance.missing)),
      concerned, ranks);
}

}  // namespace

std::string NameOf(const WatchedRank& rank) {
  return absl::StrCat("rank ", rank.rank, " (", rank.host, ")");
}

std::string DescribeRank(const WatchedRank& rank) {
  std::string text =
      absl::StrCat(NameOf(rank), ": step ", rank.heartbeat.step());
  if (!rank.heartbeat.activity().empty()) {
    absl::StrAppend(&text, ", ", rank.heartbeat.activity());
  }
  bool waits = false;
  for (const Group& group : rank.heartbeat.groups()) {
    for (const Operation& operation : group.pending()) {
      absl::StrAppend(&text, waits ? "," : "; waits in", " ", operation.text(),
                      " of group \"", group.name(), "\" for ",
                      Seconds(operation.seconds()));
      waits = true;
    }
  }
  if (!waits) {
    std::vector<std::string> last;
    for (const Group& group : rank.heartbeat.groups()) {
      if (group.last().empty()) continue;
      last.push_back(
          absl::StrCat(group.last(), " of group \"", group.name(), "\""));
    }
    absl::StrAppend(
        &text, "; waits for nobody",
        last.empty() ? "" : "; last operations: ", absl::StrJoin(last, ", "));
  }
  switch (rank.state) {
    case WatchedRank::State::kHere:
      absl::StrAppend(&text, "; heard ", Seconds(rank.silent_seconds), " ago");
      break;
    case WatchedRank::State::kLeft:
      absl::StrAppend(&text, "; has ended");
      break;
    case WatchedRank::State::kLost:
      absl::StrAppend(&text, "; connection lost");
  }
  return text;
}

WatchdogFindings JudgeRanks(const std::vector<WatchedRank>& ranks,
                            const WatchdogLimits& limits) {
  WatchdogFindings findings;
  findings.verdict = JudgeEnds(ranks);
  if (!findings.verdict.has_value()) {
    findings.verdict = JudgeSilence(ranks, limits.silence_seconds);
  }
  if (!findings.verdict.has_value()) {
    findings.verdict = JudgeOperations(ranks, limits.operation_seconds);
  }
  if (findings.verdict.has_value()) return findings;
  for (const WatchedRank& rank : ranks) {
    if (!IsSilent(rank, limits.silence_seconds / 2)) continue;
    findings.warnings.push_back(
        {absl::StrCat("silence of ", rank.rank),
         absl::StrFormat("watchdog: %s has been silent for %s; all ranks end "
                         "at %s",
                         NameOf(rank), Seconds(rank.silent_seconds),
                         Seconds(limits.silence_seconds))});
  }
  const std::vector<Wait> waits =
      WaitsBeyond(ranks, limits.operation_seconds / 2);
  if (waits.empty()) return findings;
  const Wait& root = Root(waits, ranks);
  findings.warnings.push_back(
      {absl::StrCat(root.group->name(), " ", root.operation->text()),
       absl::StrFormat("watchdog: %s: not arrived: %s",
                       DescribeWait(root, limits.operation_seconds),
                       JoinNames(AttendanceOf(root, ranks).missing))});
  return findings;
}

}  // namespace cubit
