// SPDX-License-Identifier: Apache-2.0

#include "launch/machine_model.h"

#include "absl/strings/match.h"

#include "ops/cuda/attention_engines.h"
#include "runtime/check.h"

namespace cubit {
namespace {

// cuDNN's attention, measured on one H200, 2026-11. T', K' and the seconds of a
// call: from six shapes alone, T 1,024 to 8,192, K 64 and 128, 12 to 256
// sequences times heads. Shares: from steps of 125M, 350M and 1.3B, where it
// takes 5 to 15% longer than alone; both passes alike.
MixerRates HopperAttention() {
  MixerRates rates;
  rates.forward = {0.82, 512, 96, 20e-6};
  rates.backward = {0.505, 512, 96, 45e-6};
  return rates;
}

// Where cuDNN's backward would keep too many scores (kMostCudnnScoreBytes) the
// project's kernels serve, from steps of 1.3B at T 32,768: 1.36 s for both
// passes of 24 layers, of which the forward, cuDNN's, is 0.19.
constexpr MixerRate kOwnAttentionBackward = {0.262, 512, 96, 45e-6};

// The same for the solve of Cubit, measured on one H200, 2026-11. The seconds
// of a call, those of its chain of diagonal blocks: from 128 and 256 sequences
// times heads alone. T' and shares: from the steps at T 1,024 and 8,192. There
// it takes 5 to 10% longer than alone, backwards 12 to 26%, probably because
// operands come from memory and not from the cache.
MixerRates HopperSolve() {
  MixerRates rates;
  rates.forward = {0.37, 256, 16, 70e-6};
  rates.backward = {0.297, 1000, 16, 30e-6};
  return rates;
}

// Measured on H200s of one host, 2026-11, unless it says otherwise:
//   - gemm_flops: products of 8192^3 have 690 to 723 TFLOP/s, by machine and
//     heat;
//   - half_hidden_size: products of layers have 565 to 622 TFLOP/s at hidden
//     sizes 768 and 1,024, and 645 to 712 at 2,048, and about 2% more with
//     algorithms chosen under load (docs/decisions/0034);
//   - kernel_s: micro-batches of 4 sequences against one of 16, in a pipeline:
//     170 us more a layer at 125M and 100 at 1.3B (of profiles, less what
//     profiling takes), with 36 kernels beside its mixer;
//   - hidden_transfer_cost: with dp 2 products take 1.3 ms longer at 125M and 8
//     at 1.3B, beside what by the link below are transfers of 1.6 and 14.8 ms;
//     between the two ratios. Transfers of tp are assumed to cost as much;
//   - sharded_*: steps of wavefronts and rings, cp 2 and 4, T 1,024 to 32,768,
//     and what of them is neither solve nor attention;
//   - NVLink, between two: 185 to 202 GB/s of tp's gathers and exchanges in
//     steps, 220 to 280 of the gathers of ZeRO-1. An all-reduce of 1 GiB alone
//     has 329 to 361 (of 450 each way);
//   - wide_tp_speed: waits of tp 4 of 1.3B, 173 ms of 434;
//   - the network: 90% of a data sheet, one 400 Gb/s port a GPU. Not measured.
// An H100 is the same chip with slower memory (3.35 instead of 4.8 TB/s).
MachineModel Hopper(const char* name, double memory_bandwidth) {
  MachineModel model;
  model.device.name = name;
  model.device.gemm_flops = 705e12;
  model.device.half_hidden_size = 150;
  model.device.kernel_s = 4e-6;
  model.device.attention = HopperAttention();
  model.device.most_score_bytes =
      static_cast<double>(cuda::kMostCudnnScoreBytes);
  model.device.attention_backward_beyond = kOwnAttentionBackward;
  model.device.solve = HopperSolve();
  model.device.memory_bandwidth = memory_bandwidth;
  model.device.hidden_transfer_cost = 0.6;
  model.device.sharded_waits = 0.25;
  model.device.sharded_pass_bytes = 200;
  model.device.sharded_kernels = 350;
  model.intra_node = {205e9, 10e-6};
  model.inter_node = {45e9, 20e-6};
  model.wide_tp_speed = 1.6;
  model.ranks_per_node = 8;
  return model;
}

// Rates of two threads with AVX2, measured (docs/performance.md); links are
// guesses of the right order.
MachineModel Cpu() {
  MachineModel model;
  model.device.name = "cpu";
  model.device.gemm_flops = 205e9;
  model.device.attention.forward.share = 0.63;
  model.device.attention.backward.share = 0.72;
  model.device.solve.forward.share = 0.67;
  model.device.solve.backward.share = 0.68;
  model.device.memory_bandwidth = 20e9;
  model.intra_node = {4e9, 10e-6};
  model.inter_node = {1.1e9, 50e-6};
  return model;
}

}  // namespace

MachineModel MachineModelOf(absl::string_view name) {
  if (name == "h100") return Hopper("h100", 4.30e12 * 3.35 / 4.8);
  if (name == "h200") return Hopper("h200", 4.30e12);
  CUBIT_CHECK(name == "cpu")
      << "no machine model \"" << std::string(name) << "\"";
  return Cpu();
}

absl::string_view MachineNameOf(const DeviceInfo& device) {
  if (device.kind == "cpu") return "cpu";
  return absl::StrContains(device.name, "H100") ? "h100" : "h200";
}

absl::string_view MachineNameOfGpuWith(int64_t memory_bytes) {
  // An H100 has 80 GB, or 94, an H200 141.
  constexpr int64_t kBetween = 110'000'000'000;
  return memory_bytes > 0 && memory_bytes < kBetween ? "h100" : "h200";
}

}  // namespace cubit
