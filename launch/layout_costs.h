// SPDX-License-Identifier: Apache-2.0
//
// What a layout computes, sends and keeps on each rank, in closed form. Ranks
// of one pipeline stage do the same, so the numbers are those of a stage's
// rank. step_simulator.h makes times of them, layout_report.h a page.

#ifndef CUBIT_LAUNCH_LAYOUT_COSTS_H_
#define CUBIT_LAUNCH_LAYOUT_COSTS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

#include "launch/parallel_plan.h"
#include "launch/run.pb.h"
#include "launch/sequence_cost.h"
#include "models/model_config.h"

namespace cubit {

// One direction of one micro-batch through one model part.
struct PassCosts {
  double layer_flops = 0;  // of products, all of a rank's share
  double head_flops = 0;
  double num_kernels = 0;  // of layers beside their mixers
  // Read and written by passes that no product hides: those of the layers, the
  // loss, and sums of rows over tp.
  double memory_bytes = 0;
  double tp_bytes = 0;  // sent
  double tp_messages = 0;
};

struct PartCosts {
  int64_t num_layers = 0;
  PassCosts forward;
  PassCosts backward;  // with what memory.recompute computes anew
};

struct StageCosts {
  int64_t num_layers = 0;
  int64_t num_parameters = 0;   // on the rank
  double num_updated = 0;       // of these, by its optimizer
  double step_model_flops = 0;  // forward and backward, as LanguageModel counts
  // Sent by the rank in one step.
  double tp_bytes = 0;
  double cp_bytes = 0;
  double pp_bytes = 0;
  double gradient_bytes = 0;  // reduce-scatter over dp x cp, fp32
  double weight_bytes = 0;    // all-gather of the same (ZeRO-1)
  double copy_bytes = 0;      // read and written: bf16 of what was gathered
  // Kept, about: weights with their bf16 copy, gradients, moments, and the
  // activations of the micro-batches that are alive at once; work space of one
  // layer's backward and, where the head is, logits.
  double state_bytes = 0;
  double activation_bytes = 0;
  double workspace_bytes = 0;

  double total_bytes() const {
    return state_bytes + activation_bytes + workspace_bytes;
  }
};

struct LayoutCosts {
  std::vector<PartCosts> parts;    // pp_size * num_chunks, in order
  std::vector<StageCosts> stages;  // pp_size
  SequenceCall mixer;              // of one layer and micro-batch
  bool recomputes_mixers = false;  // the backward runs their forward again
  double hidden_size = 0;
  double pp_message_bytes = 0;  // one activation or gradient of a stage's end
};

// Counted are
//   tp  in units of [B Tl, D] rows over the group: a layer gathers or scatters
//       rows 4 times forward and 6 times backward (inputs are gathered again),
//       embedding and head once each way; the loss 3 fp32 numbers a row, in one
//       message for each chunk of logits;
//   cp  sequence_cost.h;
//   pp  [B Tl / tp, D] for each micro-batch over each border of parts, and its
//       gradient;
//   dp  all gradients in fp32 over dp x cp, with ZeRO-1 once, and the weights
//       once; without it an all-reduce.
// InvalidArgument: an unknown mixer.
absl::StatusOr<LayoutCosts> MakeLayoutCosts(const ParallelPlan& plan,
                                            const RunConfig& config,
                                            const ModelConfig& model);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_LAYOUT_COSTS_H_
