// SPDX-License-Identifier: Apache-2.0

#include "parallel/pipeline_schedule.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Kind = PipelineActionKind;

// Forwards before the first backward of `rank`. From then on forward and
// backward alternate until the forwards are done.
int64_t WarmUpForwards(PipelineSchedule schedule, const PipelineShape& shape,
                       int rank) {
  const int64_t all = shape.num_micro_batches * shape.num_chunks;
  const int64_t behind = shape.pp_size - rank - 1;  // ranks after this one
  switch (schedule) {
    case PipelineSchedule::kGPipe:
      return all;
    case PipelineSchedule::k1F1B:
      return std::min(all, behind);
    case PipelineSchedule::kInterleaved1F1B:
      // The first backward is of the last chunk: (v - 1) rounds of p forwards
      // precede that chunk's, and twice `behind` is the way of its activation
      // to the last rank and of the gradient back.
      return std::min(
          all, 2 * behind + int64_t{shape.num_chunks - 1} * shape.pp_size);
  }
  return all;
}

// Number k of a rank's forwards (or backwards): rounds of p micro-batches, all
// chunks of a round before the next one, backwards from the last chunk.
PipelineAction Computation(const PipelineShape& shape, bool forward,
                           int64_t k) {
  const int64_t p = shape.pp_size;
  const int64_t v = shape.num_chunks;
  PipelineAction action;
  action.kind = forward ? Kind::kForward : Kind::kBackward;
  if (v == 1) {
    action.micro_batch = k;
    return action;
  }
  const int64_t round = k / (p * v);
  const int64_t within = k % (p * v);
  const int64_t chunk = within / p;
  action.micro_batch = round * p + within % p;
  action.chunk = static_cast<int>(forward ? chunk : v - 1 - chunk);
  return action;
}

std::vector<PipelineAction> Computations(PipelineSchedule schedule,
                                         const PipelineShape& shape, int rank) {
  const int64_t all = shape.num_micro_batches * shape.num_chunks;
  const int64_t warm_up = WarmUpForwards(schedule, shape, rank);
  std::vector<PipelineAction> actions;
  for (int64_t k = 0; k < warm_up; ++k) {
    actions.push_back(Computation(shape, true, k));
  }
  for (int64_t k = warm_up; k < all; ++k) {
    actions.push_back(Computation(shape, true, k));
    actions.push_back(Computation(shape, false, k - warm_up));
  }
  for (int64_t k = all - warm_up; k < all; ++k) {
    actions.push_back(Computation(shape, false, k));
  }
  return actions;
}

// A computation and when it ends if all take one unit of time.
struct Timed {
  PipelineAction action;
  int64_t end = 0;
};

// Where the output of `action` of `rank` goes; a part outside the model if it
// goes nowhere.
int64_t NextPart(const PipelineShape& shape, int rank,
                 const PipelineAction& action) {
  const int64_t part = int64_t{action.chunk} * shape.pp_size + rank;
  return action.kind == Kind::kForward ? part + 1 : part - 1;
}

// (forward?, micro-batch, part) of a computation.
using Work = std::tuple<bool, int64_t, int64_t>;

// When the input of a computation is there; -1 if not yet known.
int64_t InputTime(const PipelineShape& shape, int rank,
                  const PipelineAction& action,
                  const std::map<Work, int64_t>& ends) {
  const bool forward = action.kind == Kind::kForward;
  const int64_t last = int64_t{shape.pp_size} * shape.num_chunks - 1;
  const int64_t part = int64_t{action.chunk} * shape.pp_size + rank;
  if (part == (forward ? 0 : last)) return 0;
  const auto input =
      ends.find({forward, action.micro_batch, forward ? part - 1 : part + 1});
  return input == ends.end() ? -1 : input->second;
}

// Ends of all computations when each starts as soon as its rank is free and its
// input is there, in units of time.
std::vector<std::vector<Timed>> TimeComputations(PipelineSchedule schedule,
                                                 const PipelineShape& shape) {
  std::vector<std::vector<Timed>> ranks;
  std::vector<std::vector<PipelineAction>> programs;
  for (int rank = 0; rank < shape.pp_size; ++rank) {
    programs.push_back(Computations(schedule, shape, rank));
    ranks.emplace_back();
  }
  std::map<Work, int64_t> ends;
  for (bool progress = true; progress;) {
    progress = false;
    for (int rank = 0; rank < shape.pp_size; ++rank) {
      auto& timed = ranks[static_cast<size_t>(rank)];
      const auto& program = programs[static_cast<size_t>(rank)];
      while (timed.size() < program.size()) {
        const PipelineAction& action = program[timed.size()];
        const int64_t input = InputTime(shape, rank, action, ends);
        if (input < 0) break;
        const int64_t start =
            std::max(input, timed.empty() ? 0 : timed.back().end);
        timed.push_back({action, start + 1});
        ends[{action.kind == Kind::kForward, action.micro_batch,
              int64_t{action.chunk} * shape.pp_size + rank}] = start + 1;
        progress = true;
      }
    }
  }
  for (int rank = 0; rank < shape.pp_size; ++rank) {
    const auto index = static_cast<size_t>(rank);
    CUBIT_CHECK_EQ(ranks[index].size(), programs[index].size());
  }
  return ranks;
}

// A message in the batch after `batch` computations of a rank.
struct Placed {
  size_t batch = 0;
  PipelineAction action;
};

// The send of every output is in the batch right after it was computed. Its
// receive is in the batch of the receiver at that moment of the timed schedule,
// not in the one before it is needed: there the sender of an interleaved
// schedule, waiting for its send to be taken, would wait for a rank that waits
// for it. So placed, no rank waits longer than in the timed schedule if all
// computations take equally long, and none for ever if they do not: when a
// batch ends, whatever ended earlier in the timed schedule has ended.
std::vector<std::vector<Placed>> PlaceMessages(
    const PipelineShape& shape,
    const std::vector<std::vector<Timed>>& computations) {
  std::vector<std::vector<Placed>> messages(computations.size());
  std::vector<std::tuple<int64_t, size_t, Placed>> receives;  // time, rank
  const int64_t parts = int64_t{shape.pp_size} * shape.num_chunks;
  for (size_t rank = 0; rank < computations.size(); ++rank) {
    for (size_t k = 0; k < computations[rank].size(); ++k) {
      const Timed& timed = computations[rank][k];
      const bool forward = timed.action.kind == Kind::kForward;
      const int64_t next =
          NextPart(shape, static_cast<int>(rank), timed.action);
      if (next < 0 || next >= parts || shape.pp_size == 1) continue;
      const auto peer = static_cast<int>(next % shape.pp_size);
      Placed send = {k + 1, timed.action};
      send.action.kind = forward ? Kind::kSendActivation : Kind::kSendGradient;
      send.action.peer = peer;
      messages[rank].push_back(send);
      const auto& theirs = computations[static_cast<size_t>(peer)];
      const auto later = std::upper_bound(
          theirs.begin(), theirs.end(), timed.end,
          [](int64_t time, const Timed& other) { return time < other.end; });
      Placed receive = {static_cast<size_t>(later - theirs.begin()),
                        timed.action};
      receive.action.kind =
          forward ? Kind::kRecvActivation : Kind::kRecvGradient;
      receive.action.chunk = static_cast<int>(next / shape.pp_size);
      receive.action.peer = static_cast<int>(rank);
      receives.emplace_back(timed.end, static_cast<size_t>(peer), receive);
    }
  }
  const auto earlier = [](const auto& a, const auto& b) {
    return std::get<0>(a) < std::get<0>(b);
  };
  std::stable_sort(receives.begin(), receives.end(), earlier);
  for (const auto& [time, rank, receive] : receives) {
    messages[rank].push_back(receive);
  }
  for (auto& list : messages) {
    std::stable_sort(
        list.begin(), list.end(),
        [](const Placed& a, const Placed& b) { return a.batch < b.batch; });
  }
  return messages;
}

}  // namespace

absl::string_view Name(PipelineSchedule schedule) {
  switch (schedule) {
    case PipelineSchedule::kGPipe:
      return "gpipe";
    case PipelineSchedule::k1F1B:
      return "1f1b";
    case PipelineSchedule::kInterleaved1F1B:
      return "interleaved_1f1b";
  }
  return "?";
}

std::string PipelineAction::ToString() const {
  const bool forward = kind == Kind::kForward ||
                       kind == Kind::kSendActivation ||
                       kind == Kind::kRecvActivation;
  std::string what = absl::StrCat(forward ? "F" : "B", micro_batch, ".", chunk);
  if (!is_message()) return what;
  return is_send() ? absl::StrCat("send ", what, " to ", peer)
                   : absl::StrCat("recv ", what, " from ", peer);
}

absl::Status CheckPipeline(PipelineSchedule schedule,
                           const PipelineShape& shape) {
  const int64_t p = shape.pp_size;
  const int64_t m = shape.num_micro_batches;
  const std::string what = absl::StrFormat(
      "%s with pp_size %d, %d micro-batches, %d chunks per rank: ",
      std::string(Name(schedule)), p, m, shape.num_chunks);
  if (p < 1 || m < 1 || shape.num_chunks < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, "every number must be at least 1"));
  }
  if (schedule != PipelineSchedule::kInterleaved1F1B) {
    if (shape.num_chunks == 1) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        what, "wanted 1 chunk; interleaved_1f1b is the schedule for more"));
  }
  if (shape.num_chunks == 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, "wanted 2 chunks or more; 1f1b is the schedule for 1"));
  }
  if (m % p != 0) {
    const int64_t below = m / p * p;
    return absl::InvalidArgumentError(
        absl::StrCat(what, "micro-batches must be a multiple of pp_size; ",
                     below > 0 ? absl::StrCat(below, " or ") : "", below + p,
                     " would work, or 1f1b with 1 chunk"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::vector<PipelineAction>>> MakePipeline(
    PipelineSchedule schedule, const PipelineShape& shape) {
  CUBIT_RETURN_IF_ERROR(CheckPipeline(schedule, shape));
  const auto computations = TimeComputations(schedule, shape);
  const auto messages = PlaceMessages(shape, computations);
  std::vector<std::vector<PipelineAction>> ranks(computations.size());
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    size_t next = 0;
    for (size_t k = 0; k <= computations[rank].size(); ++k) {
      while (next < messages[rank].size() && messages[rank][next].batch == k) {
        ranks[rank].push_back(messages[rank][next++].action);
      }
      if (k < computations[rank].size()) {
        ranks[rank].push_back(computations[rank][k].action);
      }
    }
  }
  return ranks;
}

int64_t MaxLiveActivations(PipelineSchedule schedule,
                           const PipelineShape& shape, int rank) {
  CUBIT_CHECK(rank >= 0 && rank < shape.pp_size) << rank;
  const int64_t all = shape.num_micro_batches * shape.num_chunks;
  return std::min(all, WarmUpForwards(schedule, shape, rank) + 1);
}

double IdealBubbleFraction(const PipelineShape& shape) {
  const double idle = shape.pp_size - 1;
  return idle / (static_cast<double>(shape.num_micro_batches) *
                     static_cast<double>(shape.num_chunks) +
                 idle);
}

}  // namespace cubit
