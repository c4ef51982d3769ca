// SPDX-License-Identifier: Apache-2.0

#include "launch/sequence_cost.h"

#include <algorithm>
#include <memory>
#include <string>

#include "models/mixers/registry.h"
#include "models/mixers/token_mixer.h"
#include "runtime/dtype.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

struct TensorCounts {
  int64_t forward = 0;
  int64_t backward = 0;
};

// What crosses ranks in a mixer's own form, in [B, T, H K] tensors.
//   softmax      k, v;     again, and d_k, d_v back
//   deltaformer  k, X;     again with w and Y, and d_k, d_X back
//   cubit        r, k, X;  again with Y, and d_r, d_k, d_X back
//   Cubit-Share  k, X (r = k)
TensorCounts ShardedTensors(const ModelConfig& model) {
  if (model.mixer == "softmax") return {2, 4};
  if (model.mixer == "deltaformer") return {2, 6};
  if (model.cubit.share) return {2, 6};
  return {3, 7};
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
    call.sharded_forward_tensors = counts.forward;
    call.sharded_backward_tensors = counts.backward;
  }
  call.has_wavefront = form == "wavefront";
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
  const MixerEfficiency& efficiency =
      call.has_wavefront ? device.solve : device.attention;
  return call.forward_flops / call.cp_size /
         (device.gemm_flops * efficiency.forward);
}

double MixerBackwardSeconds(const SequenceCall& call,
                            const DeviceModel& device) {
  const MixerEfficiency& efficiency =
      call.has_wavefront ? device.solve : device.attention;
  return 2 * call.forward_flops / call.cp_size /
         (device.gemm_flops * efficiency.backward);
}

SequenceCost CostOf(CpMethod method, const SequenceCall& call,
                    const DeviceModel& device, const LinkModel& link) {
  SequenceCost cost;
  if (call.cp_size == 1) return cost;
  const double others = call.cp_size - 1;
  // Bytes of one column of this rank's rows.
  const auto column = static_cast<double>(call.batch * call.seq_len /
                                          call.cp_size * call.element_bytes);
  if (method == CpMethod::kUlysses) {
    const auto columns = static_cast<double>(
        call.num_heads * (call.columns_per_head + call.head_dim));
    cost.forward_bytes = others / call.cp_size * column * columns;
    cost.backward_bytes = cost.forward_bytes;
    cost.forward_seconds = link.Seconds(cost.forward_bytes, 2 * others);
    cost.backward_seconds = link.Seconds(cost.backward_bytes, 2 * others);
    return cost;
  }
  const double tensor =
      others * column * static_cast<double>(call.num_heads * call.head_dim);
  cost.forward_bytes =
      static_cast<double>(call.sharded_forward_tensors) * tensor;
  cost.backward_bytes =
      static_cast<double>(call.sharded_backward_tensors) * tensor;
  if (call.has_wavefront) {
    cost.idle_share =
        0.16 / static_cast<double>(call.cp_size * call.batch * call.num_heads);
  }
  const double forward = MixerForwardSeconds(call, device);
  const double backward = MixerBackwardSeconds(call, device);
  // One message a chunk, and there are 2 cp_size of them.
  const double messages = 2 * call.cp_size;
  cost.forward_seconds =
      cost.idle_share * forward +
      std::max(0.0, link.Seconds(cost.forward_bytes, messages) - forward);
  cost.backward_seconds =
      cost.idle_share * backward +
      std::max(0.0, link.Seconds(cost.backward_bytes, messages) - backward);
  return cost;
}

}  // namespace cubit
