// SPDX-License-Identifier: Apache-2.0
//
// Everything that a rank of a run holds on the device: its part of the model,
// gradients, optimizer state and the tensors of a step; and a step on them.

#ifndef CUBIT_LAUNCH_TRAIN_STATE_H_
#define CUBIT_LAUNCH_TRAIN_STATE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/optional.h"

#include "data/batch_loader.h"
#include "launch/model_stage.h"
#include "launch/parallel_plan.h"
#include "launch/run.pb.h"
#include "launch/run_plan.h"
#include "models/language_model.h"
#include "parallel/checkpoint.h"
#include "parallel/gradient_reducer.h"
#include "parallel/mesh_communicators.h"
#include "parallel/sharded_adamw.h"
#include "parallel/wavefront_runner.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace cubit {

// Losses of one batch that this rank has: losses[i] is of place rows[i] of its
// [B, T] tokens. Every token's loss is on one rank of those that share a dp
// coordinate.
struct LocalLosses {
  std::vector<float> losses;
  std::vector<int64_t> rows;
};

// What is to be saved, and the memory that it lies in.
struct SavedState {
  std::vector<CheckpointTensor> tensors;
  AdamWState moments;
};

// What the host learns of a step, once, at its end; the same on every rank.
struct StepOutcome {
  double loss = 0;       // summed over all tokens that count
  double grad_norm = 0;  // before clipping; no update if it is not finite
  absl::optional<MixerHealth> health;  // of the last micro-batch, worst layer
  int signal = 0;                      // the largest that any rank was given
};

// A step is BeginStep, ForwardBackward, Update and FinishStep, of all ranks
// together. Only the last waits for the device.
class TrainState {
 public:
  // Allocates everything; on failure the error says what did not fit. `model`
  // holds the shard of this rank of `mesh`, which must outlive the state.
  static absl::StatusOr<std::unique_ptr<TrainState>> Create(
      const RunConfig& config, const ParallelPlan& layout,
      std::unique_ptr<LanguageModel> model, MeshCommunicators* mesh);
  // On one rank.
  static absl::StatusOr<std::unique_ptr<TrainState>> Create(
      const RunConfig& config, std::unique_ptr<LanguageModel> model);
  // Waits for communication that uses its memory.
  ~TrainState();

  LanguageModel& model() { return *model_; }
  const LanguageModel& model() const { return *model_; }
  const MeshCommunicators& mesh() const { return *mesh_; }
  MeshCommunicators& mesh() { return *mesh_; }
  Stream& stream() { return stream_; }
  ParallelContext& parallel() { return parallel_; }
  // Who is told of the wavefronts of this rank; nobody at first.
  WavefrontObserver& observer() { return observer_; }
  const GradientReducer& reducer() const { return *reducer_; }

  // The sum of `local` over the dp ranks. Waits on the host.
  absl::StatusOr<int64_t> SumOverDp(int64_t local);

  // Gradients become zero.
  void BeginStep();
  // The gradients of grad_scale times the summed loss of this dp rank's
  // micro-batches, which must live until FinishStep; summed over all ranks on
  // return. `watch` is told of the actions of the schedule.
  absl::Status ForwardBackward(
      const std::vector<Batch>& batches, float grad_scale,
      absl::FunctionRef<void(const PipelineAction&)> watch);
  absl::Status ForwardBackward(const std::vector<Batch>& batches,
                               float grad_scale);
  // Update number `step` of the optimizer (1 for the first). Gradients whose
  // norm is not finite change nothing.
  absl::Status Update(int64_t step, double learning_rate);
  // `signal` that this rank was given, or 0.
  absl::StatusOr<StepOutcome> FinishStep(int signal = 0);

  // The weights of the last update are there for other work on the stream.
  absl::Status WaitForWeights() {
    return optimizer_->WaitForAllWeights(stream_);
  }

  // DataLoss if ranks that must hold the same weights do not (replicas.h). Of
  // all ranks together; waits for the device.
  absl::Status CompareReplicas();

  // Losses of `batch` alone, at once; of all ranks that share this dp
  // coordinate together.
  absl::StatusOr<LocalLosses> Forward(const Batch& batch);

  // Weights ("model.NAME") and moments ("adamw.m.NAME", "adamw.v.NAME") to be
  // saved; of all ranks together. Gradients are lost.
  absl::StatusOr<SavedState> GatherState();
  // The same to be loaded, on any layout.
  std::vector<CheckpointTensor> StateToLoad();

  // The first parameter here, in order of declaration, whose gradient is not
  // finite; empty if all are.
  std::string FirstBadGradient();

 private:
  TrainState() = default;
  absl::Status Allocate(const RunConfig& config, const ParallelPlan& layout);

  std::unique_ptr<MeshCommunicators> single_;  // where none was given
  MeshCommunicators* mesh_ = nullptr;
  ParallelContext parallel_;
  WavefrontObserver observer_;
  std::unique_ptr<LanguageModel> model_;
  std::unique_ptr<GradientReducer> reducer_;
  std::unique_ptr<ShardedAdamW> optimizer_;
  Stream stream_;
  std::vector<PipelineAction> actions_;
  std::unique_ptr<Arena> activation_arena_;
  std::unique_ptr<Arena> workspace_arena_;
  std::unique_ptr<ModelStage> stage_;
  bool counts_losses_ = false;  // this rank's losses are those that count
  PinnedBuffer downloads_;      // losses, health, squared norm
};

// The weights of `model` as checkpoint tensors, all owned by this rank.
std::vector<CheckpointTensor> ModelTensors(LanguageModel& model);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_TRAIN_STATE_H_
