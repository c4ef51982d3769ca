// SPDX-License-Identifier: Apache-2.0
//
// A pipeline schedule is data: for every rank, the list of what it does in one
// step. Pure functions make the lists; pipeline_simulator.h walks those of all
// ranks at once.
//
// The layers form p * chunks model parts. Part s is chunk s / p of rank s % p,
// so that with one chunk a rank is one stage, and with more (interleaved) the
// activations go round all ranks once for each chunk.
//
// Messages between two computations of a rank form one batch: it sends what the
// first has produced and receives what others produce at that time, for the
// second computation or a later one. A batch may be run as one
// Communicator::Exchange that waits for all of its messages, or be started and
// left behind, each computation waiting for its own input. A pair's messages,
// activations and gradients alike, are received in the order in which they are
// sent, so that one communicator without tags carries all of them.

#ifndef CUBIT_PARALLEL_PIPELINE_SCHEDULE_H_
#define CUBIT_PARALLEL_PIPELINE_SCHEDULE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cubit {

enum class PipelineSchedule {
  // All forwards, then all backwards. Huang et al., "GPipe", NeurIPS 2019.
  kGPipe,
  // One forward, one backward once the pipeline is full. Narayanan et al.,
  // "PipeDream", SOSP 2019, with a flush after each step.
  k1F1B,
  // 1F1B with several chunks a rank, in rounds of p micro-batches. Narayanan et
  // al., "Efficient large-scale language model training on GPU clusters using
  // Megatron-LM", SC 2021, section 2.2.2.
  kInterleaved1F1B,
};

// "gpipe", "1f1b", "interleaved_1f1b".
absl::string_view Name(PipelineSchedule schedule);

enum class PipelineActionKind {
  kForward,
  kBackward,
  kSendActivation,
  kRecvActivation,
  kSendGradient,
  kRecvGradient
};

struct PipelineAction {
  PipelineActionKind kind = PipelineActionKind::kForward;
  int64_t micro_batch = 0;
  // Of this rank: computed, or whose output is sent, or whose input is
  // received.
  int chunk = 0;
  int peer = -1;  // the other rank of a message

  bool is_message() const {
    return kind != PipelineActionKind::kForward &&
           kind != PipelineActionKind::kBackward;
  }
  bool is_send() const {
    return kind == PipelineActionKind::kSendActivation ||
           kind == PipelineActionKind::kSendGradient;
  }
  // "F3.1", "B3.1" (micro-batch.chunk), "send F3.1 to 2", "recv B3.1 from 2".
  std::string ToString() const;

  friend bool operator==(const PipelineAction& a, const PipelineAction& b) {
    return a.kind == b.kind && a.micro_batch == b.micro_batch &&
           a.chunk == b.chunk && a.peer == b.peer;
  }
};

struct PipelineShape {
  int pp_size = 1;
  int64_t num_micro_batches = 1;
  int num_chunks = 1;  // per rank
};

// InvalidArgument, with the numbers and what would work: a size below 1; GPipe
// or 1F1B with several chunks; interleaved 1F1B with one chunk, or with
// micro-batches that are not a multiple of the ranks (a last round with fewer
// would leave gaps in every chunk).
absl::Status CheckPipeline(PipelineSchedule schedule,
                           const PipelineShape& shape);

// The actions of every rank, indexed by rank. Errors of CheckPipeline.
//
// Live activations, that is chunks whose forward has run and whose backward has
// not, are never more than (r the rank, p ranks, m micro-batches, v chunks)
//   GPipe        m
//   1F1B         min(m, p - r)
//   interleaved  min(m v, 2 (p - r - 1) + (v - 1) p + 1), each of 1/v the size
absl::StatusOr<std::vector<std::vector<PipelineAction>>> MakePipeline(
    PipelineSchedule schedule, const PipelineShape& shape);

// Those bounds.
int64_t MaxLiveActivations(PipelineSchedule schedule,
                           const PipelineShape& shape, int rank);

// The share of a step in which a rank waits if all chunks take equally long and
// messages no time: (p - 1) / (m v + p - 1).
double IdealBubbleFraction(const PipelineShape& shape);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_PIPELINE_SCHEDULE_H_
