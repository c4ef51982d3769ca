// SPDX-License-Identifier: Apache-2.0
//
// Training steps of one layout, measured by the ranks that take part.

#ifndef CUBIT_TESTS_BENCHMARKS_SCALING_RUN_H_
#define CUBIT_TESTS_BENCHMARKS_SCALING_RUN_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "launch/parallel_plan.h"
#include "launch/run.pb.h"
#include "models/model_config.h"
#include "parallel/mesh_communicators.h"
#include "tests/benchmarks/scaling_layout.h"
#include "tests/benchmarks/train_runs.h"

namespace cubit {

struct PlannedRun {
  RunConfig config;
  ModelConfig model;
  ParallelPlan plan;
  int64_t memory_bytes = 0;  // of the rank that needs most, planned
};

// `run`, whose tokens are those of a rank, on `layout`; micro-batches as large
// as `memory_bytes` of a rank allow where the layout does not say how many.
// The reason why there can be no such run. The same on every rank.
absl::StatusOr<PlannedRun> PlanRun(const RunSpec& run,
                                   const ScalingLayout& layout,
                                   const std::vector<std::string>& overrides,
                                   int64_t memory_bytes);

struct StepCounts {
  int warmup = 0;  // also the steps whose losses are kept
  int timed = 0;
  int profiled = 0;
};

// Where the time before the steps goes, by part: what a run costs beyond what
// it measures.
struct SetupSeconds {
  double groups = 0;   // communicators; the caller's
  double memory = 0;   // the model, buffers, optimizer
  double weights = 0;  // initial ones
  // The first step without a usual one's time: algorithms are chosen, kernels
  // loaded, groups connected.
  double first_step = 0;

  double total() const { return groups + memory + weights + first_step; }
};

struct Measurement {
  SetupSeconds setup;
  std::vector<double> losses;  // of the first steps, nats per token
  double step_seconds = 0;     // median of the timed ones; 0 without any
  // Device seconds a step by kind of work, of each rank; on rank 0.
  std::vector<std::map<std::string, double>> profiles;
};

// A collective of `mesh`, whose ranks are the plan's. Ends with the same error
// on all of them where one cannot allocate.
absl::StatusOr<Measurement> MeasureRun(const PlannedRun& run,
                                       const StepCounts& counts,
                                       MeshCommunicators* mesh);

}  // namespace cubit

#endif  // CUBIT_TESTS_BENCHMARKS_SCALING_RUN_H_
