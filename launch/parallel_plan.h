// SPDX-License-Identifier: Apache-2.0
//
// Everything about a layout that is known before a run starts: the mesh, what
// each rank holds, and whether it can work. Refuses with the numbers and the
// nearest plan that works. layout_report.h tells what a plan costs.

#ifndef CUBIT_LAUNCH_PARALLEL_PLAN_H_
#define CUBIT_LAUNCH_PARALLEL_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "launch/run.pb.h"
#include "models/model_config.h"
#include "models/model_shard.h"
#include "parallel/device_mesh.h"
#include "parallel/pipeline_schedule.h"

namespace cubit {

struct ParallelPlan {
  explicit ParallelPlan(const DeviceMesh& device_mesh) : mesh(device_mesh) {}

  DeviceMesh mesh;
  int ranks_per_node = 1;
  CpMethod cp_method = CpMethod::kSharded;
  std::string cp_reason;  // why that one; "" where cp_size is 1
  // 1F1B with one chunk where pp_size is 1, whatever was asked for.
  PipelineSchedule schedule = PipelineSchedule::k1F1B;
  int num_chunks = 1;             // per stage; 2 where interleaved
  int64_t num_micro_batches = 1;  // of a step, on one dp rank
  // Layers of the pp_size * num_chunks parts of the model, in order; part s is
  // chunk s / pp_size of stage s % pp_size. The head counts as layers in the
  // balance, by its FLOPs; the embedding as nothing.
  std::vector<LayerRange> parts;
  // What works and is likely to be slow, a line each.
  std::vector<std::string> warnings;

  // What rank `rank` of the mesh holds; its chunks are always listed. CHECK: it
  // is one of the mesh.
  ModelShard ShardOf(int rank) const;
  // Which of `parts` is chunk `chunk` of stage `stage`.
  size_t PartOf(int stage, int chunk) const;
  PipelineShape pipeline_shape() const;
  // The word of configurations for cp_method: "ulysses", "wavefront", "ring".
  std::string CpMethodName(const ModelConfig& model) const;
  // "8 ranks = pp 2 x dp 2 x cp 1 x tp 2; layers 0-5 | 6-11; 1f1b of 4
  // micro-batches".
  std::string ToString() const;
};

// The plan of `config` (resolved) for `world_size` ranks on devices of
// `device_kind` ("cpu", "cuda"); `model` is that of `config`. InvalidArgument:
// a line for each thing that is wrong (what was found, what is needed), and at
// the end the flags of the nearest plan that works. Nearest is the least change
// of sizes as factors; batch.global_batch_size, which alone changes the result,
// comes last.
absl::StatusOr<ParallelPlan> MakeParallelPlan(const RunConfig& config,
                                              const ModelConfig& model,
                                              int world_size,
                                              absl::string_view device_kind);

// `num_layers` layers of cost 1 as `num_parts` runs, none empty, the last of
// which costs `head_cost` more: the largest cost is as small as it can be, then
// the costs are as even as they can be, then earlier runs are shorter (early
// stages keep more micro-batches alive). Dynamic programming. CHECK:
// 1 <= num_parts <= num_layers.
std::vector<LayerRange> BalanceLayers(int64_t num_layers, int num_parts,
                                      double head_cost);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_PARALLEL_PLAN_H_
