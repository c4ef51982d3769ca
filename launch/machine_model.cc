// SPDX-License-Identifier: Apache-2.0

#include "launch/machine_model.h"

#include "absl/strings/match.h"

#include "runtime/check.h"

namespace cubit {
namespace {

// NVLink's speed was measured between H200s of one host: an all-reduce of 1 GiB
// by NCCL has 329 to 361 GB/s of bus bandwidth (of 450 each way). That of the
// network is 90% of a data sheet, one 400 Gb/s port a GPU. Product and copy
// rates were measured on one H200, and so was the time that mixers take in a
// step of 125M at T = 1024 (docs/performance.md). An H100 is the same chip with
// slower memory (3.35 instead of 4.8 TB/s).
MachineModel Hopper(const char* name, double memory_bandwidth) {
  MachineModel model;
  model.device.name = name;
  model.device.gemm_flops = 697e12;
  model.device.attention = {0.3, 0.25};
  model.device.solve = {0.09, 0.115};
  model.device.memory_bandwidth = memory_bandwidth;
  model.intra_node = {345e9, 10e-6};
  model.inter_node = {45e9, 20e-6};
  model.ranks_per_node = 8;
  return model;
}

// Rates of two threads with AVX2, measured (docs/performance.md); links are
// guesses of the right order.
MachineModel Cpu() {
  MachineModel model;
  model.device.name = "cpu";
  model.device.gemm_flops = 205e9;
  model.device.attention = {0.63, 0.72};
  model.device.solve = {0.65, 0.7};
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

}  // namespace cubit
