// SPDX-License-Identifier: Apache-2.0

#include "parallel/wavefront_simulator.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Kind = WavefrontActionKind;
using MessageKind = WavefrontMessageKind;

// (kind, rows, columns, group): an action that was done.
using Done = std::tuple<Kind, int, int, int>;
// (kind, chunk, group): a message that arrived.
using Arrived = std::tuple<MessageKind, int, int>;

class Simulation {
 public:
  Simulation(const WavefrontSchedule& schedule, const WavefrontCosts& costs)
      : schedule_(schedule), costs_(costs), ranks_(schedule.ranks.size()) {
    for (Rank& rank : ranks_) rank.post_times.resize(schedule.messages.size());
    for (const WavefrontMessage& message : schedule.messages) {
      numbers_.emplace(Arrived(message.kind, message.chunk, message.group),
                       static_cast<int64_t>(numbers_.size()));
    }
  }

  absl::StatusOr<WavefrontRun> Run();

 private:
  struct Rank {
    size_t step = 0;
    double free = 0;
    int64_t posted = 0;
    std::set<Done> done;
    std::vector<double> post_times;  // per message
  };

  bool forward() const { return schedule_.pass == WavefrontPass::kForward; }
  absl::Status Post(size_t rank, int64_t posts);
  absl::Status CheckContribution(size_t rank,
                                 const WavefrontMessage& message) const;
  // Whether the rank's state holds what the action reads.
  absl::Status CheckInputs(size_t rank, const WavefrontStep& step) const;
  bool HasSolution(size_t rank, int chunk, int group, int64_t needs) const;
  bool HasArrived(const Arrived& wanted, int64_t needs) const;
  absl::StatusOr<bool> Advance(size_t rank);
  bool Deliver();
  std::vector<std::pair<size_t, Kind>> WorkOf(int rows, int columns) const;
  absl::Status CheckComplete() const;
  int64_t MaxInFlight(const Rank& rank) const;

  const WavefrontSchedule& schedule_;
  const WavefrontCosts& costs_;
  std::vector<Rank> ranks_;
  std::map<Arrived, int64_t> numbers_;  // of messages
  std::vector<double> arrivals_;  // of the messages that arrived, in order
  WavefrontRun run_;
  double busy_ = 0;
};

absl::Status Wrong(size_t rank, const std::string& what) {
  return absl::FailedPreconditionError(absl::StrCat("rank ", rank, ": ", what));
}

std::string Describe(const WavefrontMessage& message) {
  const char* const kind =
      message.kind == MessageKind::kBroadcast ? "broadcast"
      : message.kind == MessageKind::kReduceSolutionGradient
          ? "reduction of dX"
          : "reduction of key gradients";
  return absl::StrCat(kind, " of chunk ", message.chunk, ", group ",
                      message.group);
}

bool Simulation::HasArrived(const Arrived& wanted, int64_t needs) const {
  const auto known = std::min(needs, static_cast<int64_t>(arrivals_.size()));
  const auto number = numbers_.find(wanted);
  return number != numbers_.end() && number->second < known;
}

bool Simulation::HasSolution(size_t rank, int chunk, int group,
                             int64_t needs) const {
  if (schedule_.shape.owner(chunk) != static_cast<int>(rank)) {
    return HasArrived({MessageKind::kBroadcast, chunk, group}, needs);
  }
  const Kind solve = forward() ? Kind::kSolve : Kind::kAdjointSolve;
  return ranks_[rank].done.count({solve, chunk, chunk, group}) > 0;
}

absl::Status Simulation::CheckInputs(size_t rank,
                                     const WavefrontStep& step) const {
  const WavefrontAction& action = step.action;
  const std::set<Done>& done = ranks_[rank].done;
  const int g = action.group;
  const bool has_gradient =
      !schedule_.attention ||
      HasArrived({MessageKind::kReduceSolutionGradient, -1, g}, step.needs);
  bool there = true;
  switch (action.kind) {
    case Kind::kSolve:
      for (int c = 0; c < action.rows; ++c) {
        there = there && done.count({Kind::kUpdate, action.rows, c, g}) > 0;
      }
      break;
    case Kind::kAdjointSolve:
      there = has_gradient;
      for (int r = action.columns + 1; r < schedule_.shape.num_chunks(); ++r) {
        there =
            there && done.count({Kind::kAdjointUpdate, r, action.columns, g});
      }
      break;
    case Kind::kUpdate:
    case Kind::kAttend:
      there = HasSolution(rank, action.columns, g, step.needs);
      break;
    case Kind::kAdjointUpdate:
      there = has_gradient && HasSolution(rank, action.rows, g, step.needs);
      break;
    case Kind::kScoreGradients:
      there = done.count({Kind::kAdjointSolve, action.rows, action.rows, g});
      break;
    case Kind::kAttendBackward:
      break;
  }
  if (there) return absl::OkStatus();
  return Wrong(rank, absl::StrCat(action.ToString(), " before its inputs"));
}

// A rank may post a reduction when it has done everything of its kind, and the
// broadcast of a chunk of its own when it has solved it.
absl::Status Simulation::CheckContribution(
    size_t rank, const WavefrontMessage& message) const {
  const WavefrontShape& shape = schedule_.shape;
  const std::set<Done>& done = ranks_[rank].done;
  bool whole = true;
  if (message.kind == MessageKind::kBroadcast) {
    whole = shape.owner(message.chunk) != static_cast<int>(rank) ||
            HasSolution(rank, message.chunk, message.group, 0);
  } else {
    const Kind kind = message.kind == MessageKind::kReduceSolutionGradient
                          ? Kind::kAttendBackward
                          : Kind::kScoreGradients;
    for (int r = 0; r < shape.num_chunks(); ++r) {
      if (shape.owner(r) != static_cast<int>(rank)) continue;
      for (int c = 0; c <= r; ++c) {
        whole = whole && done.count({kind, r, c, message.group}) > 0;
      }
    }
  }
  if (whole) return absl::OkStatus();
  return Wrong(rank,
               absl::StrCat(Describe(message), " posted before its part"));
}

absl::Status Simulation::Post(size_t rank, int64_t posts) {
  Rank& state = ranks_[rank];
  for (; state.posted < posts; ++state.posted) {
    const auto n = static_cast<size_t>(state.posted);
    CUBIT_RETURN_IF_ERROR(CheckContribution(rank, schedule_.messages[n]));
    state.post_times[n] = state.free;
  }
  return absl::OkStatus();
}

// Runs the rank until it needs a message; whether anything ran.
absl::StatusOr<bool> Simulation::Advance(size_t rank) {
  Rank& state = ranks_[rank];
  const WavefrontProgram& program = schedule_.ranks[rank];
  bool progress = false;
  while (state.step < program.steps.size()) {
    const WavefrontStep& step = program.steps[state.step];
    if (step.needs > static_cast<int64_t>(arrivals_.size())) break;
    CUBIT_RETURN_IF_ERROR(CheckInputs(rank, step));
    const WavefrontAction& a = step.action;
    if (!state.done.insert({a.kind, a.rows, a.columns, a.group}).second) {
      return Wrong(rank, absl::StrCat(a.ToString(), " runs twice"));
    }
    const double there =
        step.needs == 0 ? 0 : arrivals_[static_cast<size_t>(step.needs - 1)];
    const double start = std::max(state.free, there);
    state.free = start + costs_.Of(a);
    busy_ += costs_.Of(a);
    run_.timeline.push_back({static_cast<int>(rank), a, start, state.free});
    CUBIT_RETURN_IF_ERROR(Post(rank, step.posts));
    ++state.step;
    progress = true;
  }
  return progress;
}

// Runs the messages that every rank has posted; whether there was one.
bool Simulation::Deliver() {
  bool progress = false;
  while (arrivals_.size() < schedule_.messages.size()) {
    const size_t n = arrivals_.size();
    double begin = arrivals_.empty() ? 0 : arrivals_.back();
    for (const Rank& rank : ranks_) {
      if (rank.posted <= static_cast<int64_t>(n)) return progress;
      begin = std::max(begin, rank.post_times[n]);
    }
    arrivals_.push_back(begin + costs_.Of(schedule_.messages[n]));
    progress = true;
  }
  return progress;
}

// What has to be done about a pair of chunks, and by whom.
std::vector<std::pair<size_t, Kind>> Simulation::WorkOf(int rows,
                                                        int columns) const {
  const auto row_rank = static_cast<size_t>(schedule_.shape.owner(rows));
  const auto column_rank = static_cast<size_t>(schedule_.shape.owner(columns));
  const bool diagonal = rows == columns;
  std::vector<std::pair<size_t, Kind>> work;
  if (forward()) {
    work.emplace_back(row_rank, diagonal ? Kind::kSolve : Kind::kUpdate);
    if (schedule_.attention) work.emplace_back(row_rank, Kind::kAttend);
    return work;
  }
  work.emplace_back(column_rank,
                    diagonal ? Kind::kAdjointSolve : Kind::kAdjointUpdate);
  if (schedule_.attention) {
    work.emplace_back(row_rank, Kind::kAttendBackward);
    work.emplace_back(row_rank, Kind::kScoreGradients);
  }
  return work;
}

// Every pair of chunks once, on the rank that owns the action.
absl::Status Simulation::CheckComplete() const {
  const WavefrontShape& shape = schedule_.shape;
  std::vector<size_t> wanted(ranks_.size(), 0);
  for (int i = 0; i < shape.num_chunks() * shape.num_chunks(); ++i) {
    const int r = i / shape.num_chunks();
    const int c = i % shape.num_chunks();
    if (c > r) continue;
    for (const auto& [rank, kind] : WorkOf(r, c)) {
      for (int g = 0; g < shape.num_groups; ++g) {
        ++wanted[rank];
        if (ranks_[rank].done.count({kind, r, c, g}) > 0) continue;
        const WavefrontAction action = {kind, r, c, g};
        return Wrong(rank, absl::StrCat(action.ToString(), " is missing"));
      }
    }
  }
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (ranks_[r].done.size() != wanted[r]) {
      return Wrong(r, "does what is not its work");
    }
  }
  return absl::OkStatus();
}

int64_t Simulation::MaxInFlight(const Rank& rank) const {
  // Both lists ascend.
  int64_t most = 0;
  size_t arrived = 0;
  for (size_t n = 0; n < rank.post_times.size(); ++n) {
    while (arrivals_[arrived] <= rank.post_times[n] && arrived < n) ++arrived;
    most = std::max(most, static_cast<int64_t>(n + 1 - arrived));
  }
  return most;
}

absl::StatusOr<WavefrontRun> Simulation::Run() {
  for (size_t r = 0; r < ranks_.size(); ++r) {
    CUBIT_RETURN_IF_ERROR(Post(r, schedule_.ranks[r].initial_posts));
  }
  for (bool progress = true; progress;) {
    progress = Deliver();
    for (size_t r = 0; r < ranks_.size(); ++r) {
      CUBIT_ASSIGN_OR_RETURN(const bool ran, Advance(r));
      progress = progress || ran;
    }
  }
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const auto& steps = schedule_.ranks[r].steps;
    if (ranks_[r].step == steps.size()) continue;
    return Wrong(r, absl::StrCat("deadlock before ",
                                 steps[ranks_[r].step].action.ToString()));
  }
  if (arrivals_.size() < schedule_.messages.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat(Describe(schedule_.messages[arrivals_.size()]),
                     " is not posted by every rank"));
  }
  CUBIT_RETURN_IF_ERROR(CheckComplete());
  for (const Rank& rank : ranks_) {
    run_.makespan = std::max(run_.makespan, rank.free);
    run_.max_in_flight.push_back(MaxInFlight(rank));
  }
  if (!arrivals_.empty()) {
    run_.makespan = std::max(run_.makespan, arrivals_.back());
  }
  run_.efficiency =
      busy_ / (static_cast<double>(ranks_.size()) * run_.makespan);
  std::stable_sort(run_.timeline.begin(), run_.timeline.end(),
                   [](const WavefrontSpan& a, const WavefrontSpan& b) {
                     return a.rank < b.rank;
                   });
  return std::move(run_);
}

}  // namespace

absl::StatusOr<WavefrontRun> SimulateWavefront(
    const WavefrontSchedule& schedule, const WavefrontCosts& costs) {
  return Simulation(schedule, costs).Run();
}

double WavefrontEfficiency(WavefrontPass pass, bool attention,
                           const WavefrontShape& shape,
                           const WavefrontCosts& costs) {
  const auto run =
      SimulateWavefront(MakeWavefront(pass, attention, shape, costs), costs);
  CUBIT_CHECK_OK(run);
  return run->efficiency;
}

std::string WavefrontTable(const WavefrontCosts& costs) {
  std::string table =
      "| ranks | groups | contiguous forward | zigzag 2P forward | zigzag 4P "
      "forward | zigzag 2P backward |\n| --- | --- | --- | --- | --- | --- |\n";
  const auto cell = [&](WavefrontPass pass, const WavefrontShape& shape) {
    absl::StrAppendFormat(&table, " %.0f / %.0f |",
                          100 * WavefrontEfficiency(pass, false, shape, costs),
                          100 * WavefrontEfficiency(pass, true, shape, costs));
  };
  for (const int ranks : {2, 4, 8}) {
    for (const int groups : {1, 2, 4, 8, 16, 32, 64}) {
      absl::StrAppendFormat(&table, "| %d | %d |", ranks, groups);
      cell(WavefrontPass::kForward, WavefrontShape::Contiguous(ranks, groups));
      for (const int chunks : {2, 4}) {
        cell(WavefrontPass::kForward,
             WavefrontShape::Zigzag(ranks, chunks, groups));
      }
      cell(WavefrontPass::kBackward, WavefrontShape::Zigzag(ranks, 2, groups));
      table += "\n";
    }
  }
  return table;
}

}  // namespace cubit
