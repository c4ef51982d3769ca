// SPDX-License-Identifier: Apache-2.0
//
// Everything a run holds on the device: model, gradients, optimizer state and
// the tensors of one micro-batch. The same layout functions measure (--dry_run)
// and allocate.

#ifndef CUBIT_LAUNCH_TRAIN_STATE_H_
#define CUBIT_LAUNCH_TRAIN_STATE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/optional.h"

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
  int64_t process_bytes = 0;  // of the device, besides `memory`
  double step_flops = 0;      // forward and backward of one step
  int64_t step_tokens = 0;    // targets of one step
  int64_t num_micro_batches = 0;

  int64_t total_bytes() const { return memory.total() + process_bytes; }
  // A table for people.
  std::string ToString() const;
};

RunPlan MakePlan(const RunConfig& config, const LanguageModel& model);

// The largest batch.micro_batch_size that divides the global batch and whose
// plan fits into `memory_bytes`; 0 if none does.
int64_t LargestMicroBatch(const RunConfig& config, const LanguageModel& model,
                          int64_t memory_bytes);

// OK if the plan fits into a device's memory; else (FailedPrecondition) what is
// needed, what there is, and the nearest plan that fits. A size of 0 is unknown
// and fits.
absl::Status CheckFits(const RunConfig& config, const LanguageModel& model,
                       const RunPlan& plan, int64_t memory_bytes);

// The sums that a batch adds to a loss.
struct LossSum {
  double loss = 0;
  int64_t tokens = 0;
};

// What the host learns of a step, once, at its end.
struct StepOutcome {
  double loss = 0;       // summed over all tokens that count
  double grad_norm = 0;  // before clipping; no update if it is not finite
  absl::optional<MixerHealth> health;  // of the last micro-batch, worst layer
};

// A step is BeginStep, ForwardBackward for each of its micro-batches, Update
// and FinishStep. Only the last waits for the device.
class TrainState {
 public:
  // Allocates everything; on failure the error says what did not fit.
  static absl::StatusOr<std::unique_ptr<TrainState>> Create(
      const RunConfig& config, std::unique_ptr<LanguageModel> model);

  LanguageModel& model() { return *model_; }
  AdamWOptimizer& optimizer() { return *optimizer_; }
  Stream& stream() { return stream_; }

  // Gradients become zero.
  void BeginStep();
  // Adds the gradients of grad_scale times the summed loss of `batch`, whose
  // contents are copied before it returns. At most as many as the plan has
  // micro-batches (CHECK).
  void ForwardBackward(const Batch& batch, float grad_scale);
  // Update number `step` of the optimizer (1 for the first). Gradients whose
  // norm is not finite change nothing.
  void Update(int64_t step, double learning_rate);
  StepOutcome FinishStep();

  // Loss of `batch` alone, at once. `losses`, if given, receives every token's
  // [N].
  LossSum Forward(const Batch& batch, std::vector<float>* losses);

  // Weights ("model.NAME") and, with `optimizer_state`, the moments.
  std::vector<CheckpointTensor> Tensors(bool optimizer_state);

  // The first parameter, in order of declaration, whose gradient is not finite;
  // empty if all are.
  std::string FirstBadGradient();

 private:
  TrainState() = default;
  // Through pinned memory, so that the host goes on.
  void Upload(const Batch& batch);

  std::unique_ptr<LanguageModel> model_;
  std::unique_ptr<AdamWOptimizer> optimizer_;
  Stream stream_;
  std::unique_ptr<Arena> activation_arena_;
  std::unique_ptr<Arena> workspace_arena_;
  Activations activations_;
  ModelScratch scratch_;
  Tensor step_losses_;  // [micro-batches, N]
  Tensor health_;       // [layers, 3]; absent if the mixer has none

  int64_t num_micro_batches_ = 0;  // in a step
  int64_t micro_batch_ = 0;        // next one of this step
  PinnedBuffer uploads_;           // a step's ids
  Event uploads_done_;             // of the step before
  PinnedBuffer downloads_;         // losses, health, squared norm
};

// The weights of `model` as checkpoint tensors.
std::vector<CheckpointTensor> ModelTensors(LanguageModel& model);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_TRAIN_STATE_H_
