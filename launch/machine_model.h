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

// Model FLOPs of a mixer's core over its time, as a share of gemm_flops.
struct MixerEfficiency {
  double forward = 1;
  double backward = 1;
};

// One rank.
struct DeviceModel {
  std::string name;
  double gemm_flops = 1;  // FLOP/s of large products in the run's precision
  MixerEfficiency attention;
  MixerEfficiency solve;        // a triangular solve and its attention
  double memory_bandwidth = 1;  // bytes/s, read and written together
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

}  // namespace cubit

#endif  // CUBIT_LAUNCH_MACHINE_MODEL_H_
