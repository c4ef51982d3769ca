// SPDX-License-Identifier: Apache-2.0

#include "launch/sequence_cost.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "models/mixers/registry.h"
#include "models/mixers/sequence_groups.h"
#include "models/mixers/token_mixer.h"
#include "models/mixers/wavefront_costs.h"
#include "parallel/sequence_layout.h"
#include "parallel/wavefront_schedule.h"
#include "parallel/wavefront_simulator.h"
#include "runtime/dtype.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

struct TensorCounts {
  int64_t forward = 0;
  int64_t backward = 0;
  int64_t summed = 0;
};

// What crosses ranks in a mixer's own form, in [B, T, H K] tensors.
//   softmax      k, v;     again, and sums of d_k, d_v
//   deltaformer  k, X;     again with Y and w (if not k), and d_k, d_X
//   cubit        r, k, X;  again with Y, and d_r, d_k, d_X
//   Cubit-Share  r, X (k is r scaled);  again with Y, and three sums
TensorCounts ShardedTensors(const ModelConfig& model) {
  if (model.mixer == "softmax") return {2, 2, 2};
  if (model.mixer == "deltaformer") {
    return {2, model.deltaformer.w == DeltaWeights::kKey ? 3 : 4, 2};
  }
  if (model.cubit.share) return {2, 3, 3};
  return {3, 4, 3};
}

// Waiting over working in a wavefront whose messages take no time.
double IdleShare(WavefrontPass pass, const SequenceCall& call) {
  constexpr int kMostRanks = 16;
  constexpr int kMostGroups = 8;
  WavefrontCosts costs;
  costs.broadcast = 0;
  costs.reduce = 0;
  const double busy = WavefrontEfficiency(
      pass, /*attention=*/true,
      WavefrontShape::Zigzag(std::min(call.cp_size, kMostRanks), 2,
                             std::min(call.num_groups, kMostGroups)),
      costs);
  return 1 / busy - 1;
}

// A solve costs as many FLOPs as its attention.
double MixerSeconds(const SequenceCall& call, const MixerRate& attention,
                    const MixerRate& solve, int forwards, double gemm_flops) {
  const double flops = forwards * call.forward_flops / call.cp_size;
  const auto seconds = [&](const MixerRate& rate, double share) {
    return rate.Seconds(share * flops, gemm_flops, call.seq_len, call.head_dim);
  };
  return call.has_wavefront ? seconds(attention, 0.5) + seconds(solve, 0.5)
                            : seconds(attention, 1);
}

// Milliseconds of a rank's actions of these kinds, which are a cp-th of all:
// every rank owns two chunks of every group and the same number of pairs.
double ActionMilliseconds(const std::vector<WavefrontActionKind>& kinds,
                          const SequenceCall& call,
                          const WavefrontCosts& costs) {
  const double chunks = 2.0 * call.cp_size;
  const double pairs = chunks * (chunks - 1) / 2 / call.cp_size;
  double sum = 0;
  for (const WavefrontActionKind kind : kinds) {
    const WavefrontCosts::Cost& cost = costs.actions[static_cast<size_t>(kind)];
    // A solve is of a diagonal, an update of a pair of chunks.
    const bool solves = kind == WavefrontActionKind::kSolve ||
                        kind == WavefrontActionKind::kAdjointSolve;
    const bool updates = kind == WavefrontActionKind::kUpdate ||
                         kind == WavefrontActionKind::kAdjointUpdate;
    if (!solves) sum += pairs * cost.pair;
    if (!updates) sum += 2 * cost.diagonal;
  }
  return sum * call.num_groups;
}

// By the times of the actions: transfers that make computations longer or are
// waited for, and passes over the rank's rows, two fifths of them forward.
SequenceCost ShardedOnGpu(const SequenceCall& call, const DeviceModel& device,
                          const LinkModel& link) {
  using Kind = WavefrontActionKind;
  // Without a solve there are no buffers of sums for one, and nobody waits for
  // what another computes.
  constexpr double kPassesOfRing = 0.25;
  const double of_transfers = device.hidden_transfer_cost +
                              (call.has_wavefront ? device.sharded_waits : 0);
  const SequenceBytes bytes = BytesOf(CpMethod::kSharded, call);
  const double messages = 2 * call.cp_size * call.num_groups;
  const WavefrontCosts costs = GpuWavefrontCosts(
      SequenceGroups(SequenceLayout(call.seq_len, call.cp_size), call.batch,
                     call.num_heads),
      call.head_dim, DType::kBFloat16);
  const int64_t local_rows = call.batch * (call.seq_len / call.cp_size);
  const auto elements =
      static_cast<double>(local_rows * call.num_heads * call.head_dim);
  const double passes =
      (call.has_wavefront ? 1 : kPassesOfRing) *
      (elements * device.sharded_pass_bytes / device.memory_bandwidth +
       device.sharded_kernels * device.kernel_s);
  const auto seconds = [&](const std::vector<Kind>& kinds, double idle,
                           double sent, double share) {
    return 1e-3 * ActionMilliseconds(kinds, call, costs) * (1 + idle) +
           of_transfers * link.Seconds(sent, messages) + share * passes;
  };
  std::vector<Kind> forward = {Kind::kAttend};
  std::vector<Kind> backward = {Kind::kAttendBackward};
  SequenceCost cost;
  if (call.has_wavefront) {
    forward.insert(forward.end(), {Kind::kSolve, Kind::kUpdate});
    backward.insert(backward.end(), {Kind::kAdjointSolve, Kind::kAdjointUpdate,
                                     Kind::kScoreGradients});
    cost.forward_idle = IdleShare(WavefrontPass::kForward, call);
    cost.backward_idle = IdleShare(WavefrontPass::kBackward, call);
  }
  cost.forward_seconds =
      seconds(forward, cost.forward_idle, bytes.forward, 0.4) -
      MixerForwardSeconds(call, device);
  cost.backward_seconds =
      seconds(backward, cost.backward_idle, bytes.backward, 0.6) -
      MixerBackwardSeconds(call, device);
  return cost;
}

// Of whole sequences of a rank's heads.
double ScoreBytes(const SequenceCall& call) {
  return static_cast<double>(call.batch * call.num_heads) / call.cp_size *
         std::pow(static_cast<double>(call.seq_len), 2) *
         static_cast<double>(call.element_bytes);
}

}  // namespace

absl::string_view ShardedFormOf(absl::string_view mixer) {
  if (mixer == "cubit" || mixer == "deltaformer") return "wavefront";
  if (mixer == "softmax") return "ring";
  return "";
}

absl::StatusOr<SequenceCall> MakeSequenceCall(const ModelConfig& model,
                                              int64_t batch, int tp_size,
                                              int cp_size) {
  CUBIT_ASSIGN_OR_RETURN(const std::unique_ptr<TokenMixer> mixer,
                         MakeMixer(model));
  SequenceCall call;
  call.batch = batch;
  call.seq_len = model.seq_len;
  call.num_heads = model.num_heads / tp_size;
  call.head_dim = model.head_dim();
  for (const MixerProjection& projection : mixer->projections()) {
    call.columns_per_head += projection.width;
  }
  call.cp_size = cp_size;
  call.element_bytes = SizeOf(model.activation_dtype);
  const absl::string_view form = ShardedFormOf(model.mixer);
  if (!form.empty()) {
    const TensorCounts counts = ShardedTensors(model);
    call.gathered_forward_tensors = counts.forward;
    call.gathered_backward_tensors = counts.backward;
    call.summed_tensors = counts.summed;
  }
  call.has_wavefront = form == "wavefront";
  if (model.seq_len % (2 * cp_size) == 0) {
    call.num_groups = SequenceGroups(SequenceLayout(model.seq_len, cp_size),
                                     batch, call.num_heads)
                          .count();
  }
  MixerShape shape;
  shape.batch = batch;
  shape.seq_len = call.seq_len;
  shape.num_heads = call.num_heads;
  shape.head_dim = call.head_dim;
  call.forward_flops = mixer->ForwardFlops(shape);
  return call;
}

double MixerForwardSeconds(const SequenceCall& call,
                           const DeviceModel& device) {
  return MixerSeconds(call, device.attention.forward, device.solve.forward, 1,
                      device.gemm_flops);
}

double MixerBackwardSeconds(const SequenceCall& call,
                            const DeviceModel& device) {
  const bool beyond =
      device.most_score_bytes > 0 && ScoreBytes(call) > device.most_score_bytes;
  return MixerSeconds(
      call,
      beyond ? device.attention_backward_beyond : device.attention.backward,
      device.solve.backward, 2, device.gemm_flops);
}

SequenceBytes BytesOf(CpMethod method, const SequenceCall& call) {
  if (call.cp_size == 1) return {};
  const double others = call.cp_size - 1;
  const int64_t local_rows = call.batch * (call.seq_len / call.cp_size);
  const auto rows = static_cast<double>(local_rows);
  if (method == CpMethod::kUlysses) {
    const auto columns = static_cast<double>(
        call.num_heads * (call.columns_per_head + call.head_dim));
    const double bytes = others / call.cp_size * rows * columns *
                         static_cast<double>(call.element_bytes);
    return {bytes, bytes};
  }
  const double elements =
      others * rows * static_cast<double>(call.num_heads * call.head_dim);
  const auto bytes = [&](int64_t gathered, int64_t summed) {
    return elements *
           static_cast<double>(gathered * call.element_bytes +
                               summed * static_cast<int64_t>(sizeof(float)));
  };
  return {bytes(call.gathered_forward_tensors, 0),
          bytes(call.gathered_backward_tensors, call.summed_tensors)};
}

SequenceCost CostOf(CpMethod method, const SequenceCall& call,
                    const DeviceModel& device, const LinkModel& link) {
  SequenceCost cost;
  if (call.cp_size == 1) return cost;
  const SequenceBytes bytes = BytesOf(method, call);
  if (method == CpMethod::kUlysses) {
    // One all-to-all in, one out.
    const double messages = 2 * (call.cp_size - 1);
    // What is sent and what stays, packed and unpacked.
    const double all = bytes.forward * call.cp_size / (call.cp_size - 1);
    const double copies = 4 * all;
    cost.forward_seconds = link.Seconds(bytes.forward, messages) +
                           copies / device.memory_bandwidth;
    cost.backward_seconds = link.Seconds(bytes.backward, messages) +
                            copies / device.memory_bandwidth;
    return cost;
  }
  if (device.sharded_waits > 0 && call.seq_len % (2 * call.cp_size) == 0) {
    return ShardedOnGpu(call, device, link);
  }
  if (call.has_wavefront) {
    cost.forward_idle = IdleShare(WavefrontPass::kForward, call);
    cost.backward_idle = IdleShare(WavefrontPass::kBackward, call);
  }
  // A message for each chunk of each group and tensor.
  const double messages = 2 * call.cp_size * call.num_groups;
  const double forward = MixerForwardSeconds(call, device);
  const double backward = MixerBackwardSeconds(call, device);
  cost.forward_seconds =
      std::max(cost.forward_idle * forward,
               link.Seconds(bytes.forward, messages) - forward);
  cost.backward_seconds =
      std::max(cost.backward_idle * backward,
               link.Seconds(bytes.backward, messages) - backward);
  return cost;
}

}  // namespace cubit
