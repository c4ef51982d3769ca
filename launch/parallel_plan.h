// SPDX-License-Identifier: Apache-2.0
//
// Everything about a layout that is known before a run starts: the mesh, what
// each rank holds, and whether it can work. Refuses with the numbers and the
// nearest plan that works.

#ifndef CUBIT_LAUNCH_PARALLEL_PLAN_H_
#define CUBIT_LAUNCH_PARALLEL_PLAN_H_

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
  DeviceMesh mesh;
  CpMethod cp_method = CpMethod::kSharded;
  std::string cp_reason;  // why that one; "" where cp_size is 1
  PipelineSchedule schedule = PipelineSchedule::k1F1B;
  int num_chunks = 1;             // per stage; 2 where interleaved
  int64_t num_micro_batches = 1;  // of a step, on one dp rank
  // Layers of the pp_size * num_chunks parts of the model, in order; part s is
  // chunk s / pp_size of stage s % pp_size. Embedding and head count as layers
  // in the balance.
  std::vector<LayerRange> parts;

  // What rank `rank` of the mesh holds.
  ModelShard ShardOf(int rank) const;
  PipelineShape pipeline_shape() const;
  // "8 ranks = pp 2 x dp 2 x cp 1 x tp 2; layers 0-5 | 6-11; ...".
  std::string ToString() const;
};

// The plan of `config` (resolved) for `world_size` ranks on devices of
// `device_kind`. InvalidArgument, with a line for each thing that is wrong.
absl::StatusOr<ParallelPlan> MakeParallelPlan(const RunConfig& config,
                                              const ModelConfig& model,
                                              int world_size,
                                              absl::string_view device_kind);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_PARALLEL_PLAN_H_
