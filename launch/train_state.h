// SPDX-License-Identifier: Apache-2.0
//
// Everything a run holds on the device: model, gradients, optimizer state and
// the tensors of one micro-batch. The same layout functions measure (--dry_run)
// and allocate.

#ifndef CUBIT_LAUNCH_TRAIN_STATE_H_
#define CUBIT_LAUNCH_TRAIN_STATE_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"

#include "data/batch_loader.h"
#include "launch/run.pb.h"
#include "models/language_model.h"
#include "parallel/adamw_optimizer.h"
#include "parallel/checkpoint.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace cubit {

// What a run needs, known before anything is allocated.
struct RunPlan {
  int64_t num_parameters = 0;
  MemoryUse memory;
  double step_flops = 0;    // forward and backward of one step
  int64_t step_tokens = 0;  // targets of one step
  int64_t num_micro_batches = 0;

  // A table for people.
  std::string ToString() const;
};

RunPlan MakePlan(const RunConfig& config, const LanguageModel& model);

// The sums that a micro-batch adds to its step's loss.
struct LossSum {
  double loss = 0;
  int64_t tokens = 0;
};

class TrainState {
 public:
  // Allocates everything; on failure the error says what did not fit.
  static absl::StatusOr<std::unique_ptr<TrainState>> Create(
      const RunConfig& config, std::unique_ptr<LanguageModel> model);

  LanguageModel& model() { return *model_; }
  AdamWOptimizer& optimizer() { return *optimizer_; }
  Stream& stream() { return stream_; }

  void ZeroGradients();
  // Adds the gradients of grad_scale times the summed loss of `batch`.
  LossSum ForwardBackward(const Batch& batch, float grad_scale);
  // Loss of `batch` alone. `losses`, if given, receives every token's [N].
  LossSum Forward(const Batch& batch, std::vector<float>* losses);
  // Of the last forward.
  MixerHealth Health();

  // Weights ("model.NAME") and, with `optimizer_state`, the moments.
  std::vector<CheckpointTensor> Tensors(bool optimizer_state);

  // The first parameter, in order of declaration, whose gradient is not finite;
  // empty if all are.
  std::string FirstBadGradient();

 private:
  TrainState() = default;
  void Upload(const Batch& batch);
  LossSum ReadLosses(const Batch& batch, std::vector<float>* losses);

  std::unique_ptr<LanguageModel> model_;
  std::unique_ptr<AdamWOptimizer> optimizer_;
  Stream stream_;
  std::unique_ptr<Arena> activation_arena_;
  std::unique_ptr<Arena> workspace_arena_;
  Activations activations_;
  ModelScratch scratch_;
  std::vector<float> host_losses_;
};

// The weights of `model` as checkpoint tensors.
std::vector<CheckpointTensor> ModelTensors(LanguageModel& model);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_TRAIN_STATE_H_
