// SPDX-License-Identifier: Apache-2.0
//
// Walks the actions of all pipeline ranks together: finds deadlocks and actions
// in an impossible order, and gives times.

#ifndef CUBIT_PARALLEL_PIPELINE_SIMULATOR_H_
#define CUBIT_PARALLEL_PIPELINE_SIMULATOR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "parallel/pipeline_schedule.h"

namespace cubit {

enum class MessageMode {
  // A batch of messages (pipeline_schedule.h) ends when all of its messages
  // have been taken: Communicator::Exchange on the stream that computes.
  kBlocking,
  // A batch holds nothing up; a computation waits for its own input: messages
  // on streams of their own.
  kAsynchronous,
};

struct PipelineTimes {
  double forward = 1;   // of one chunk
  double backward = 1;  // of one chunk
  // Of every model part (pipeline_schedule.h), instead of the two above; both
  // or neither.
  std::vector<double> part_forward = {};
  std::vector<double> part_backward = {};
  // From a send that is taken to the arrival; of a batch that waits, once.
  double message = 0;
};

struct SimulatedAction {
  PipelineAction action;  // kForward or kBackward
  double start = 0;
  double end = 0;
};

struct PipelineRun {
  double makespan = 0;
  // 1 - busy time of all ranks / (ranks * makespan).
  double bubble_fraction = 0;
  std::vector<int64_t> max_live_activations;           // per rank
  std::vector<std::vector<SimulatedAction>> timeline;  // per rank
};

// FailedPrecondition, naming ranks and actions: a deadlock; a message that is
// not the one that its receiver expects; a computation whose input is not
// there; a forward or backward that is missing or runs twice. CHECK: times of
// parts, if given, are of all parts.
absl::StatusOr<PipelineRun> SimulatePipeline(
    const std::vector<std::vector<PipelineAction>>& ranks,
    const PipelineShape& shape, const PipelineTimes& times, MessageMode mode);

// One row a rank, one column a unit of time: the digit of the micro-batch (from
// 0, modulo 10) in each forward, in [brackets] each backward, '.' where the
// rank waits. For times that are whole numbers.
std::string DrawPipeline(const PipelineRun& run);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_PIPELINE_SIMULATOR_H_
