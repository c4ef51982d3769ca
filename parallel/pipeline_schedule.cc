// SPDX-License-Identifier: Apache-2.0

#include "parallel/pipeline_schedule.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
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

// The message that brings the input of `action` (step -1 along the way of the
// data) or takes its output (step 1); appended unless the data stays on this
// rank, or the model begins or ends here.
void AppendMessage(const PipelineShape& shape, int rank,
                   const PipelineAction& action, bool send,
                   std::vector<PipelineAction>& actions) {
  const bool forward = action.kind == Kind::kForward;
  const int p = shape.pp_size;
  const int part = action.chunk * p + rank;
  const int other = part + (forward == send ? 1 : -1);
  if (other < 0 || other >= p * shape.num_chunks || p == 1) return;
  PipelineAction message = action;
  message.peer = other % p;
  if (forward) {
    message.kind = send ? Kind::kSendActivation : Kind::kRecvActivation;
  } else {
    message.kind = send ? Kind::kSendGradient : Kind::kRecvGradient;
  }
  actions.push_back(message);
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
  const std::string what =
      absl::StrCat(forward ? "F" : "B", micro_batch, ".", chunk);
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
  std::vector<std::vector<PipelineAction>> ranks;
  for (int rank = 0; rank < shape.pp_size; ++rank) {
    std::vector<PipelineAction> actions;
    for (const PipelineAction& action : Computations(schedule, shape, rank)) {
      AppendMessage(shape, rank, action, false, actions);
      actions.push_back(action);
      AppendMessage(shape, rank, action, true, actions);
    }
    ranks.push_back(std::move(actions));
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
