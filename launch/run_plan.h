// SPDX-License-Identifier: Apache-2.0
//
// What a rank of a run needs, known before anything is allocated: --dry_run
// prints it, and a run that does not fit is refused with it.

#ifndef CUBIT_LAUNCH_RUN_PLAN_H_
#define CUBIT_LAUNCH_RUN_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "launch/model_stage.h"
#include "launch/parallel_plan.h"
#include "launch/run.pb.h"
#include "models/language_model.h"
#include "parallel/gradient_reducer.h"
#include "parallel/pipeline_schedule.h"
#include "runtime/memory.h"

namespace cubit {

// Of one rank.
struct RunPlan {
  int64_t num_parameters = 0;  // held here
  MemoryUse memory;
  int64_t process_bytes = 0;  // of the device, besides `memory`
  double step_flops = 0;      // forward and backward of one step, here
  int64_t step_tokens = 0;    // targets of one step, on all ranks
  int64_t num_micro_batches = 0;

  int64_t total_bytes() const { return memory.total() + process_bytes; }
  // A table for people.
  std::string ToString() const;
};

// The layout of a run on one rank.
ParallelPlan SinglePlan(const RunConfig& config, const ModelConfig& model);

// The actions of `rank` of the plan's mesh in one step.
std::vector<PipelineAction> ActionsOf(const ParallelPlan& layout, int rank);
StageShape StageShapeOf(const RunConfig& config, const ModelConfig& model,
                        const ParallelPlan& layout);
GradientReducerOptions ReducerOptions(const RunConfig& config);
// Device memory that the ops come to hold for themselves (ops/workspace.h).
int64_t OpsBytes(const RunConfig& config, const LanguageModel& model);

// `model` holds the shard of `rank`, with ranges aligned for the plan
// (AlignParameters).
RunPlan MakePlan(const RunConfig& config, const ParallelPlan& layout, int rank,
                 const LanguageModel& model);
// On one rank.
RunPlan MakePlan(const RunConfig& config, const LanguageModel& model);

// Pads the parameters so that the ranks of a dp x cp group can share them.
void AlignParameters(const RunConfig& config, const ParallelPlan& layout,
                     LanguageModel* model);

// The largest batch.micro_batch_size that divides a dp rank's part of the
// global batch and whose plan fits into `memory_bytes`; 0 if none does.
int64_t LargestMicroBatch(const RunConfig& config, const ParallelPlan& layout,
                          int rank, const LanguageModel& model,
                          int64_t memory_bytes);

// OK if the plan fits into a device's memory; else (FailedPrecondition) what is
// needed, what there is, and the nearest plan that fits. A size of 0 is unknown
// and fits.
absl::Status CheckFits(const RunConfig& config, const ParallelPlan& layout,
                       int rank, const LanguageModel& model,
                       const RunPlan& plan, int64_t memory_bytes);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_RUN_PLAN_H_
