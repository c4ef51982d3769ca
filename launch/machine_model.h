// SPDX-License-Identifier: Apache-2.0
//
// What estimates assume of a machine: how fast a rank computes and how fast
// ranks exchange bytes. Plain numbers; docs/parallelism.md says which of the
// defaults were measured.

#ifndef CUBIT_LAUNCH_MACHINE_MODEL_H_
#define CUBIT_LAUNCH_MACHINE_MODEL_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

#include "runtime/device.h"

namespace cubit {

// How fast one pass of attention, or of a triangular solve, runs. Of n FLOPs
// with sequences of T and heads of K a call takes
//   call_s + n / (gemm_flops share) (T + T') / T (K + K') / K K0 / (K0 + K')
// where share is that of long sequences of heads of K0 = kUsualHeadDim. T' is
// what tiles on the diagonal and passes over the rows cost, K' the
// exponentials, of which there are as many for any K.
struct MixerRate {
  static constexpr double kUsualHeadDim = 128;

  double share = 1;          // of gemm_flops
  double half_length = 0;    // T'
  double half_head_dim = 0;  // K'
  double call_s = 0;

  double Seconds(double flops, double gemm_flops, int64_t seq_len,
                 int64_t head_dim) const {
    const double by_length = 1 + half_length / static_cast<double>(seq_len);
    const double by_width =
        (1 + half_head_dim / static_cast<double>(head_dim)) /
        (1 + half_head_dim / kUsualHeadDim);
    return call_s + flops / (gemm_flops * share) * by_length * by_width;
  }
};

struct MixerRates {
  MixerRate forward;
  MixerRate backward;
};

// One rank.
struct DeviceModel {
  std::string name;
  double gemm_flops = 1;  // FLOP/s of large products in the run's precision
  // Products of layers of hidden size D run at D / (D + this) of it.
  double half_hidden_size = 0;
  // What a kernel takes beyond its rate: its start, and waves that are not
  // full.
  double kernel_s = 0;
  MixerRates attention;
  // The backward of an attention whose scores, B H T^2 of the activations'
  // dtype, are more bytes than this. 0: there is no such limit.
  double most_score_bytes = 0;
  MixerRate attention_backward_beyond;
  MixerRates solve;             // without the attention that goes with it
  double memory_bandwidth = 1;  // bytes/s, read and written together
  // Seconds by which a computation gets longer for each second of a transfer
  // that hides behind it: both want the same memory and processors.
  double hidden_transfer_cost = 0;
  // A mixer's own form on shards by the times of its actions
  // (models/mixers/wavefront_costs.h): the share of its transfers that is
  // waited for, bytes of a wavefront's passes for each element of [B, Tl, H K],
  // and their kernels a layer. All 0: by the rates above.
  double sharded_waits = 0;
  double sharded_pass_bytes = 0;
  double sharded_kernels = 0;
};

// What one rank can send while it receives as much.
struct LinkModel {
  double bandwidth = 1;  // bytes/s
  double latency_s = 0;  // until the first byte arrives

  double Seconds(double bytes, double num_messages) const {
    return bytes / bandwidth + num_messages * latency_s;
  }
};

struct MachineModel {
  DeviceModel device;
  LinkModel intra_node;
  LinkModel inter_node;
  int ranks_per_node = 1;
  // How much more a rank gathers and scatters in a second where tp has four
  // ranks of a node or more than where it has two.
  double wide_tp_speed = 1;

  // The link of a group that lies within `span` consecutive ranks, of which the
  // first is a multiple of `span`.
  const LinkModel& LinkOf(int64_t span) const {
    return span <= ranks_per_node && ranks_per_node % span == 0 ? intra_node
                                                                : inter_node;
  }
};

// "h100", "h200": bf16, eight GPUs a node. "cpu": fp32, two threads a rank,
// ranks of one node exchange through its memory, nodes over 10 GbE. CHECK: one
// of these names.
MachineModel MachineModelOf(absl::string_view name);

// The name to use for `device`. A GPU that no name stands for is taken for the
// H200 that the figures were measured on.
absl::string_view MachineNameOf(const DeviceInfo& device);
// The same for a GPU of which only the memory is known, if that (0 is not).
absl::string_view MachineNameOfGpuWith(int64_t memory_bytes);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_MACHINE_MODEL_H_
