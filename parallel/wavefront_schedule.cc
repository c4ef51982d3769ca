// SPDX-License-Identifier: Apache-2.0

#include "parallel/wavefront_schedule.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "runtime/check.h"

namespace cubit {
namespace {

using Kind = WavefrontActionKind;
using MessageKind = WavefrontMessageKind;

using Ticks = int64_t;
constexpr double kTicksPerUnit = 1000;

Ticks ToTicks(double cost) { return std::llround(cost * kTicksPerUnit); }

// Smaller goes first: class, then group, then the chunk that others wait for
// longest.
using Priority = std::array<int, 4>;

Priority PriorityOf(const WavefrontAction& action) {
  switch (action.kind) {
    case Kind::kSolve:
      return {0, action.group, action.rows, 0};
    case Kind::kAdjointSolve:
      return {0, action.group, -action.columns, 0};
    case Kind::kUpdate:
      return {1, action.group, action.rows, action.columns};
    case Kind::kAdjointUpdate:
      return {1, action.group, -action.columns, -action.rows};
    // By group, so that the first group's dX is whole early.
    case Kind::kAttend:
    case Kind::kAttendBackward:
      return {2, action.group, action.rows, action.columns};
    case Kind::kScoreGradients:
      return {3, action.group, action.rows, action.columns};
  }
  return {};
}

// One play of a pass. All ranks and the lane of messages are simulated; a rank
// that is free takes the ready action of the smallest priority.
class Play {
 public:
  Play(WavefrontPass pass, bool attention, const WavefrontShape& shape,
       const WavefrontCosts& costs)
      : costs_(costs), own_(static_cast<size_t>(shape.cp_size)) {
    schedule_.pass = pass;
    schedule_.attention = attention;
    schedule_.shape = shape;
    schedule_.ranks.resize(own_.size());
    ranks_.resize(own_.size());
    for (int c = 0; c < shape.num_chunks(); ++c) {
      own_[static_cast<size_t>(shape.owner(c))].push_back(c);
    }
  }

  WavefrontSchedule Run();

 private:
  struct Rank {
    std::map<Priority, WavefrontAction> ready;
    bool busy = false;
    WavefrontAction running;
  };
  // Ordered by time; then what was queued first.
  struct Event {
    Ticks time = 0;
    int64_t number = 0;
    int rank = -1;       // whose action ends; -1: a message arrives
    size_t message = 0;  // which
    bool operator<(const Event& other) const {
      return std::tie(time, number) < std::tie(other.time, other.number);
    }
  };

  bool forward() const { return schedule_.pass == WavefrontPass::kForward; }
  int chunks() const { return schedule_.shape.num_chunks(); }
  int groups() const { return schedule_.shape.num_groups; }
  // Index into counters of a chunk (or rank) and group.
  size_t At(int chunk, int group) const {
    return static_cast<size_t>(group) * static_cast<size_t>(chunks()) +
           static_cast<size_t>(chunk);
  }

  void Offer(int rank, Kind kind, int rows, int columns, int group) {
    const WavefrontAction action = {kind, rows, columns, group};
    ranks_[static_cast<size_t>(rank)].ready.emplace(PriorityOf(action), action);
  }
  void Begin();
  void OfferAttendBackward(int group);
  void StartIdleRanks(Ticks now);
  void Finish(int rank, const WavefrontAction& action, Ticks now);
  void FinishBackward(int rank, const WavefrontAction& action, Ticks now);
  void Arrive(const WavefrontMessage& message);
  // X or Y of a chunk is on this rank.
  void Provide(int rank, int chunk, int group);
  // dX of a group is on all ranks.
  void ProvideGradient(int group);
  void Announce(MessageKind kind, int group, int chunk, Ticks now);
  // Whether another rank needs X or Y of the chunk.
  bool IsAwaited(int chunk) const;

  WavefrontCosts costs_;
  WavefrontSchedule schedule_;
  std::vector<std::vector<int>> own_;  // chunks of every rank
  std::vector<Rank> ranks_;
  std::set<Event> events_;
  int64_t num_events_ = 0;
  Ticks lane_free_ = 0;
  std::vector<int> updates_left_;  // [G, chunks]
  std::vector<int> attends_left_;  // [G], of all ranks
  std::vector<int> scores_left_;   // [G], of all ranks
};

void Play::Begin() {
  const int pairs = chunks() * (chunks() + 1) / 2;
  updates_left_.resize(At(0, groups()));
  attends_left_.assign(static_cast<size_t>(groups()), pairs);
  scores_left_ = attends_left_;
  for (int g = 0; g < groups(); ++g) {
    for (int c = 0; c < chunks(); ++c) {
      updates_left_[At(c, g)] = forward() ? c : chunks() - 1 - c;
    }
    if (forward()) {
      Offer(schedule_.shape.owner(0), Kind::kSolve, 0, 0, g);
    } else if (schedule_.attention) {
      OfferAttendBackward(g);
    } else {
      ProvideGradient(g);
    }
  }
}

void Play::OfferAttendBackward(int group) {
  for (int rows = 0; rows < chunks(); ++rows) {
    for (int columns = 0; columns <= rows; ++columns) {
      Offer(schedule_.shape.owner(rows), Kind::kAttendBackward, rows, columns,
            group);
    }
  }
}

void Play::ProvideGradient(int group) {
  const int last = chunks() - 1;
  Offer(schedule_.shape.owner(last), Kind::kAdjointSolve, last, last, group);
}

void Play::Provide(int rank, int chunk, int group) {
  for (const int other : own_[static_cast<size_t>(rank)]) {
    if (!forward()) {
      if (other < chunk) {
        Offer(rank, Kind::kAdjointUpdate, chunk, other, group);
      }
      continue;
    }
    if (other > chunk) Offer(rank, Kind::kUpdate, other, chunk, group);
    if (other >= chunk && schedule_.attention) {
      Offer(rank, Kind::kAttend, other, chunk, group);
    }
  }
}

bool Play::IsAwaited(int chunk) const {
  const WavefrontShape& shape = schedule_.shape;
  const int begin = forward() ? chunk + 1 : 0;
  const int end = forward() ? chunks() : chunk;
  for (int c = begin; c < end; ++c) {
    if (shape.owner(c) != shape.owner(chunk)) return true;
  }
  return false;
}

void Play::Announce(MessageKind kind, int group, int chunk, Ticks now) {
  const WavefrontMessage message = {kind, group, chunk};
  lane_free_ = std::max(lane_free_, now) + ToTicks(costs_.Of(message));
  events_.insert({lane_free_, num_events_++, -1, schedule_.messages.size()});
  schedule_.messages.push_back(message);
}

void Play::Arrive(const WavefrontMessage& message) {
  if (message.kind == MessageKind::kReduceSolutionGradient) {
    ProvideGradient(message.group);
  }
  if (message.kind != MessageKind::kBroadcast) return;
  for (int rank = 0; rank < schedule_.shape.cp_size; ++rank) {
    if (rank == schedule_.shape.owner(message.chunk)) continue;
    Provide(rank, message.chunk, message.group);
  }
}

void Play::FinishBackward(int rank, const WavefrontAction& action, Ticks now) {
  const int g = action.group;
  const auto index = static_cast<size_t>(g);
  switch (action.kind) {
    case Kind::kAttendBackward:
      if (--attends_left_[index] == 0) {
        Announce(MessageKind::kReduceSolutionGradient, g, -1, now);
      }
      return;
    case Kind::kScoreGradients:
      if (--scores_left_[index] == 0) {
        Announce(MessageKind::kReduceKeyGradients, g, -1, now);
      }
      return;
    case Kind::kAdjointUpdate:
      if (--updates_left_[At(action.columns, g)] == 0) {
        Offer(rank, Kind::kAdjointSolve, action.columns, action.columns, g);
      }
      return;
    default:
      break;
  }
  CUBIT_CHECK(action.kind == Kind::kAdjointSolve);
  const int chunk = action.columns;
  if (IsAwaited(chunk)) Announce(MessageKind::kBroadcast, g, chunk, now);
  Provide(rank, chunk, g);
  if (!schedule_.attention) return;
  for (int columns = 0; columns <= chunk; ++columns) {
    Offer(rank, Kind::kScoreGradients, chunk, columns, g);
  }
}

void Play::Finish(int rank, const WavefrontAction& action, Ticks now) {
  if (!forward()) {
    FinishBackward(rank, action, now);
    return;
  }
  const int g = action.group;
  if (action.kind == Kind::kUpdate) {
    if (--updates_left_[At(action.rows, g)] == 0) {
      Offer(rank, Kind::kSolve, action.rows, action.rows, g);
    }
  } else if (action.kind == Kind::kSolve) {
    if (IsAwaited(action.rows)) {
      Announce(MessageKind::kBroadcast, g, action.rows, now);
    }
    Provide(rank, action.rows, g);
  }
}

void Play::StartIdleRanks(Ticks now) {
  for (int r = 0; r < schedule_.shape.cp_size; ++r) {
    Rank& rank = ranks_[static_cast<size_t>(r)];
    if (rank.busy || rank.ready.empty()) continue;
    rank.busy = true;
    rank.running = rank.ready.begin()->second;
    rank.ready.erase(rank.ready.begin());
    schedule_.ranks[static_cast<size_t>(r)].steps.push_back({rank.running});
    events_.insert({now + ToTicks(costs_.Of(rank.running)), num_events_++, r});
  }
}

WavefrontSchedule Play::Run() {
  Begin();
  StartIdleRanks(0);
  while (!events_.empty()) {
    const Ticks now = events_.begin()->time;
    while (!events_.empty() && events_.begin()->time == now) {
      const Event event = *events_.begin();
      events_.erase(events_.begin());
      if (event.rank < 0) {
        Arrive(schedule_.messages[event.message]);
        continue;
      }
      Rank& rank = ranks_[static_cast<size_t>(event.rank)];
      rank.busy = false;
      Finish(event.rank, rank.running, now);
    }
    StartIdleRanks(now);
  }
  return std::move(schedule_);
}

// Number of the message that brings X or Y of (chunk, group); and of the
// reductions, with chunk -1 and -2.
using MessageNumbers = std::map<std::pair<int, int>, int64_t>;

std::pair<int, int> KeyOf(const WavefrontMessage& message) {
  switch (message.kind) {
    case MessageKind::kBroadcast:
      return {message.chunk, message.group};
    case MessageKind::kReduceSolutionGradient:
      return {-1, message.group};
    case MessageKind::kReduceKeyGradients:
      return {-2, message.group};
  }
  return {};
}

// Messages [0, result) that `action` of `rank` begins after.
int64_t NeedsOf(const WavefrontAction& action, int rank,
                const WavefrontShape& shape, const MessageNumbers& numbers) {
  int64_t needs = 0;
  const auto need = [&](int chunk) {
    const auto found = numbers.find({chunk, action.group});
    if (found != numbers.end()) needs = std::max(needs, found->second + 1);
  };
  switch (action.kind) {
    case Kind::kUpdate:
    case Kind::kAttend:
      if (shape.owner(action.columns) != rank) need(action.columns);
      break;
    case Kind::kAdjointUpdate:
      if (shape.owner(action.rows) != rank) need(action.rows);
      need(-1);
      break;
    case Kind::kAdjointSolve:
      need(-1);
      break;
    case Kind::kSolve:
    case Kind::kAttendBackward:
    case Kind::kScoreGradients:
      break;
  }
  return needs;
}

// For every message the number of actions that this rank has done when it has
// nothing more to add.
std::vector<size_t> Contributions(const WavefrontSchedule& schedule,
                                  const WavefrontProgram& program,
                                  const MessageNumbers& numbers) {
  std::vector<size_t> done(schedule.messages.size(), 0);
  const auto contribute = [&](int chunk, int group, size_t step) {
    const auto found = numbers.find({chunk, group});
    if (found == numbers.end()) return;
    size_t& last = done[static_cast<size_t>(found->second)];
    last = std::max(last, step + 1);
  };
  for (size_t i = 0; i < program.steps.size(); ++i) {
    const WavefrontAction& action = program.steps[i].action;
    switch (action.kind) {
      case Kind::kSolve:
      case Kind::kAdjointSolve:
        contribute(action.rows, action.group, i);
        break;
      case Kind::kAttendBackward:
        contribute(-1, action.group, i);
        break;
      case Kind::kScoreGradients:
        contribute(-2, action.group, i);
        break;
      default:
        break;
    }
  }
  return done;
}

void PlaceMessages(WavefrontSchedule* schedule) {
  MessageNumbers numbers;
  for (size_t n = 0; n < schedule->messages.size(); ++n) {
    numbers[KeyOf(schedule->messages[n])] = static_cast<int64_t>(n);
  }
  for (size_t r = 0; r < schedule->ranks.size(); ++r) {
    WavefrontProgram& program = schedule->ranks[r];
    for (WavefrontStep& step : program.steps) {
      step.needs =
          NeedsOf(step.action, static_cast<int>(r), schedule->shape, numbers);
    }
    const std::vector<size_t> done = Contributions(*schedule, program, numbers);
    size_t posted = 0;
    const auto post = [&](size_t steps_done) {
      while (posted < done.size() && done[posted] <= steps_done) ++posted;
      return static_cast<int64_t>(posted);
    };
    program.initial_posts = post(0);
    for (size_t i = 0; i < program.steps.size(); ++i) {
      program.steps[i].posts = post(i + 1);
    }
  }
}

void CheckArguments(const WavefrontShape& shape, const WavefrontCosts& costs) {
  CUBIT_CHECK_GE(shape.num_groups, 1);
  std::vector<bool> owns(static_cast<size_t>(shape.cp_size), false);
  for (const int owner : shape.owners) {
    CUBIT_CHECK(owner >= 0 && owner < shape.cp_size)
        << "owner " << owner << " of " << shape.cp_size;
    owns[static_cast<size_t>(owner)] = true;
  }
  for (size_t r = 0; r < owns.size(); ++r) {
    CUBIT_CHECK(owns[r]) << "rank " << r << " owns no chunk";
  }
  for (const WavefrontCosts::Cost& cost : costs.actions) {
    CUBIT_CHECK_GE(cost.pair, 1 / kTicksPerUnit);
    CUBIT_CHECK_GE(cost.diagonal, 1 / kTicksPerUnit);
  }
  CUBIT_CHECK_GE(costs.broadcast, 0);
  CUBIT_CHECK_GE(costs.reduce, 0);
}

}  // namespace

absl::string_view Name(WavefrontActionKind kind) {
  switch (kind) {
    case Kind::kSolve:
      return "solve";
    case Kind::kUpdate:
      return "update";
    case Kind::kAttend:
      return "attend";
    case Kind::kAttendBackward:
      return "attend_backward";
    case Kind::kAdjointSolve:
      return "adjoint_solve";
    case Kind::kAdjointUpdate:
      return "adjoint_update";
    case Kind::kScoreGradients:
      return "score_gradients";
  }
  return "?";
}

bool IsForward(WavefrontActionKind kind) {
  return kind == WavefrontActionKind::kSolve ||
         kind == WavefrontActionKind::kUpdate ||
         kind == WavefrontActionKind::kAttend;
}

std::string WavefrontAction::ToString() const {
  const std::string columns_text =
      diagonal() ? "" : absl::StrCat("<-", columns);
  return absl::StrCat(Name(kind), " ", rows, columns_text, " of group ", group);
}

WavefrontShape WavefrontShape::Contiguous(int cp_size, int num_groups) {
  return Zigzag(cp_size, 1, num_groups);
}

WavefrontShape WavefrontShape::Zigzag(int cp_size, int chunks_per_rank,
                                      int num_groups) {
  WavefrontShape shape;
  shape.cp_size = cp_size;
  shape.num_groups = num_groups;
  for (int round = 0; round < chunks_per_rank; ++round) {
    for (int i = 0; i < cp_size; ++i) {
      shape.owners.push_back(round % 2 == 0 ? i : cp_size - 1 - i);
    }
  }
  return shape;
}

WavefrontShape WavefrontShape::Of(const SequenceLayout& layout,
                                  int num_groups) {
  WavefrontShape shape;
  shape.cp_size = layout.cp_size();
  shape.num_groups = num_groups;
  for (int c = 0; c < layout.num_chunks(); ++c) {
    shape.owners.push_back(layout.OwnerOf(c));
  }
  return shape;
}

WavefrontSchedule MakeWavefront(WavefrontPass pass, bool attention,
                                const WavefrontShape& shape,
                                const WavefrontCosts& costs) {
  CheckArguments(shape, costs);
  WavefrontSchedule schedule = Play(pass, attention, shape, costs).Run();
  PlaceMessages(&schedule);
  return schedule;
}

}  // namespace cubit
