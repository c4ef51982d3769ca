// SPDX-License-Identifier: Apache-2.0
//
// How long a training step takes on a layout, estimated from rates of a machine
// (machine_model.h) and from what the layout computes and sends
// (layout_costs.h). The pipeline is simulated action by action
// (parallel/pipeline_simulator.h); within a stage all ranks do the same at the
// same time, so that one rank a stage is enough, for thousands of ranks.

#ifndef CUBIT_LAUNCH_STEP_SIMULATOR_H_
#define CUBIT_LAUNCH_STEP_SIMULATOR_H_

#include <string>

#include "absl/status/statusor.h"

#include "launch/layout_costs.h"
#include "launch/machine_model.h"
#include "launch/parallel_plan.h"
#include "parallel/pipeline_simulator.h"

namespace cubit {

// Seconds of one step. The parts, from compute to optimizer, add up to the
// step: those of tp and cp are of the stage that spends most on them and on
// computation, bubble is what that stage waits, and pp, gradients and weights
// are what these add to the step.
struct StepEstimate {
  double step = 0;
  double compute = 0;
  double bubble = 0;
  double tp = 0;
  double cp = 0;
  double pp = 0;
  // Of the reduce-scatter, and of the all-gather, what shows beyond the last
  // backward and the first forward, and by how much these get longer.
  double gradients = 0;
  double weights = 0;
  double optimizer = 0;

  // Share of stages' time spent waiting if messages took none.
  double bubble_fraction = 0;
  // Model FLOPs of all ranks over what the products' rate would allow.
  double utilization = 0;
  double largest_bytes = 0;  // of a rank, about
  int largest_stage = 0;
  PipelineRun pipeline;  // times in seconds

  // A table for people.
  std::string ToString() const;
};

// With `messages` of the pipeline waited for, or beside the computation.
// `machine.ranks_per_node` is the plan's. What is assumed:
//   - products, mixers and passes over memory run at the machine's rates for
//     their shapes, one after the other, and every kernel takes kernel_s more;
//   - tp's collectives and cp's all-to-alls hide behind nothing; a wavefront or
//     a ring hides what its mixer's time can (sequence_cost.h);
//   - gradients go out layer by layer behind the last backward; weights come in
//     layer by layer ahead of the first forward; links are not shared between
//     axes;
//   - what hides slows what hides it (DeviceModel::hidden_transfer_cost);
//   - the update reads and writes 30 bytes a parameter that the rank updates,
//     the norm of the gradients 4, and making all gradients zero 4 more.
// Not counted: that copies and collectives of a few megabytes are slower than
// those that the rates are of, and that products are faster on a GPU that waits
// for much of its time.
// Errors of the pipeline's simulation.
absl::StatusOr<StepEstimate> SimulateStep(const ParallelPlan& plan,
                                          const LayoutCosts& costs,
                                          const MachineModel& machine,
                                          MessageMode messages);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_STEP_SIMULATOR_H_
