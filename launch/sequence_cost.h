// SPDX-License-Identifier: Apache-2.0
//
// What it costs to run a mixer on sequences that are spread over the cp ranks,
// by method: bytes that a rank sends and time that nothing hides. Closed forms;
// parallel_plan.h chooses by them where cp_method is auto.

#ifndef CUBIT_LAUNCH_SEQUENCE_COST_H_
#define CUBIT_LAUNCH_SEQUENCE_COST_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "launch/machine_model.h"
#include "models/model_config.h"
#include "models/model_shard.h"

namespace cubit {

// "wavefront" or "ring": the mixer's own form on shards; "" if it has none.
absl::string_view ShardedFormOf(absl::string_view mixer);

// One mixer of one layer, on one rank, for one micro-batch.
struct SequenceCall {
  int64_t batch = 1;             // B
  int64_t seq_len = 0;           // T, the whole sequence
  int64_t num_heads = 0;         // H / tp, before cp cuts anything
  int64_t head_dim = 0;          // K
  int64_t columns_per_head = 0;  // widths of the mixer's projections
  int cp_size = 1;
  int64_t element_bytes = 4;
  // Of [B, T, H K] tensors that the mixer's own form gathers or broadcasts, or
  // sums over the ranks, forward and backward.
  int64_t sharded_forward_tensors = 0;
  int64_t sharded_backward_tensors = 0;
  bool has_wavefront = false;  // chunks wait for chunks: a triangular solve
  // Model FLOPs of the core over the whole sequence.
  double forward_flops = 0;
};

// Of `model` with `tp_size`, `cp_size`. InvalidArgument: an unknown mixer.
absl::StatusOr<SequenceCall> MakeSequenceCall(const ModelConfig& model,
                                              int64_t batch, int tp_size,
                                              int cp_size);

struct SequenceCost {
  double forward_bytes = 0;  // sent by a rank
  double backward_bytes = 0;
  double idle_share = 0;       // of the mixer's own time, spent waiting
  double forward_seconds = 0;  // not hidden behind computation
  double backward_seconds = 0;

  double bytes() const { return forward_bytes + backward_bytes; }
  double seconds() const { return forward_seconds + backward_seconds; }
};

// Seconds of the core on one rank: a cp-th of it.
double MixerForwardSeconds(const SequenceCall& call, const DeviceModel& device);
double MixerBackwardSeconds(const SequenceCall& call,
                            const DeviceModel& device);

// Zero where cp_size is 1.
//
// Ulysses: all-to-alls of the projections and of the mixer's result, and of
// their gradients; nothing hides them.
//
// Sharded: each rank sends its rows of the gathered tensors to the others,
// beside its computation; what takes longer than that shows, and so does the
// idle time of a wavefront, 0.16 / (cp_size * B * H / tp) of the mixer's time.
// That form fits the event simulation of zigzag chunks with attention as filler
// (1 to 16 groups, 2 to 8 ranks) to one percent.
SequenceCost CostOf(CpMethod method, const SequenceCall& call,
                    const DeviceModel& device, const LinkModel& link);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_SEQUENCE_COST_H_
