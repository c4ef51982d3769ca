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
  // [B, T, H K] tensors that the mixer's own form gathers or broadcasts,
  // forward and backward, and those of sums over the ranks, backward.
  int64_t gathered_forward_tensors = 0;
  int64_t gathered_backward_tensors = 0;
  int64_t summed_tensors = 0;
  bool has_wavefront = false;  // chunks wait for chunks: a triangular solve
  int num_groups = 1;  // that the wavefront keeps apart (sequence_groups.h)
  // Model FLOPs of the core over the whole sequence.
  double forward_flops = 0;
};

// Of `model` with `tp_size`, `cp_size`. InvalidArgument: an unknown mixer.
absl::StatusOr<SequenceCall> MakeSequenceCall(const ModelConfig& model,
                                              int64_t batch, int tp_size,
                                              int cp_size);

// Sent by a rank; zero where cp_size is 1.
struct SequenceBytes {
  double forward = 0;
  double backward = 0;

  double total() const { return forward + backward; }
};

// Ulysses: all-to-alls of the projections and of the mixer's result, and of
// their gradients. Sharded: the rank's rows of every tensor that the mixer's
// own form moves, sums in fp32, to each of the others.
SequenceBytes BytesOf(CpMethod method, const SequenceCall& call);

// Seconds of the core on one rank: a cp-th of it.
double MixerForwardSeconds(const SequenceCall& call, const DeviceModel& device);
double MixerBackwardSeconds(const SequenceCall& call,
                            const DeviceModel& device);

// Seconds beyond those, which may be negative where a wavefront's kernels are
// faster, and the share of them that a wavefront waits for.
struct SequenceCost {
  double forward_idle = 0;
  double backward_idle = 0;
  double forward_seconds = 0;  // with Ulysses' copies
  double backward_seconds = 0;

  double seconds() const { return forward_seconds + backward_seconds; }
};

// Nothing hides Ulysses' all-to-alls, nor the copies into their buffers and out
// of them: all columns are read and written twice. The sharded forms send
// beside their computation: what takes longer than that shows, or else what a
// wavefront waits for by its dependencies (parallel/wavefront_simulator.h, with
// messages that take no time; of more than 8 groups and 16 ranks, which wait
// less, as of 8 and 16).
SequenceCost CostOf(CpMethod method, const SequenceCall& call,
                    const DeviceModel& device, const LinkModel& link);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_SEQUENCE_COST_H_
