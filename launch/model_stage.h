// SPDX-License-Identifier: Apache-2.0
//
// A rank's part of the model with the memory of one step: what a schedule's
// forwards and backwards run on. Nothing is allocated after LayOut.

#ifndef CUBIT_LAUNCH_MODEL_STAGE_H_
#define CUBIT_LAUNCH_MODEL_STAGE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "data/batch_loader.h"
#include "models/language_model.h"
#include "models/layer_context.h"
#include "models/recompute.h"
#include "parallel/pipeline_runner.h"
#include "parallel/sequence_layout.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace cubit {

// The extents of a step on this rank.
struct StageShape {
  int64_t batch = 1;    // B, sequences of a micro-batch
  int64_t seq_len = 0;  // T
  PipelineShape pipeline;
  Recompute recompute = Recompute::kNone;
};

class ModelStage : public PipelineStage {
 public:
  // Told of parameters whose gradients are complete, in the last micro-batch.
  using Ready = std::function<void(size_t first, size_t last)>;
  // Told before the first forwards of a step which parameters they read next.
  using Needs = ParametersNeeded;

  // `model` must outlive the stage.
  ModelStage(const LanguageModel* model, const StageShape& shape,
             const std::vector<PipelineAction>& actions);

  // The tensors of a step: the same calls measure and allocate.
  void LayOutActivations(Arena& arena);
  void LayOutWorkspace(Arena& arena);
  // Pinned memory; and what of the work space is constant.
  absl::Status Prepare(Stream* stream, ParallelContext* parallel);

  // A step begins: its micro-batches, which must live until they are uploaded,
  // and what its losses are multiplied with. Its backwards add to gradients
  // that ParameterStore::ZeroGradients has left.
  void BeginStep(const std::vector<Batch>* batches, float grad_scale,
                 Ready ready, Needs needs);

  void Forward(int64_t micro_batch, int chunk) override;
  void Backward(int64_t micro_batch, int chunk) override;
  Tensor Input(int64_t micro_batch, int chunk) override;
  ConstTensor Output(int64_t micro_batch, int chunk) override;
  Tensor OutputGradient(int64_t micro_batch, int chunk) override;
  ConstTensor InputGradient(int64_t micro_batch, int chunk) override;

  // Losses of all micro-batches of a step, [m, N]; absent on ranks without the
  // head.
  const Tensor& step_losses() const { return step_losses_; }
  // Of the last micro-batch, [layers here, 3]; absent if the mixer has none.
  const Tensor& health() const { return health_; }

  // Forward of one batch from the first chunk to the last, through `pp`; the
  // head's rank then has its losses [N] in losses_of_evaluation().
  absl::Status Evaluate(const Batch& batch, Communicator& pp);
  const Tensor& losses_of_evaluation() const;

  // For each local row of B sequences, its place in [B, T].
  std::vector<int64_t> RowsOfBatch() const;

 private:
  Activations& Slot(int64_t micro_batch, int chunk);
  ChunkContext Context() const { return {stream_, parallel_, nullptr}; }
  // Through pinned memory, so that the host goes on. `place` numbers the
  // uploads of a step.
  void Upload(const Batch& batch, int64_t place, const Activations& slot);
  // The local rows of ids [B, T] into `pinned`.
  void TakeLocalRows(const std::vector<int32_t>& ids, int32_t* pinned) const;
  int64_t UploadBytes() const;

  const LanguageModel* model_;
  StageShape shape_;
  PipelineBuffers buffers_;
  SequenceLayout sequence_;
  Stream* stream_ = nullptr;
  ParallelContext* parallel_ = nullptr;

  std::vector<std::vector<Activations>> slots_;  // [chunk][slot]
  std::vector<Tensor> gradients_;                // [Nl, D] each
  ModelScratch scratch_;
  Tensor step_losses_;
  Tensor health_;

  const std::vector<Batch>* batches_ = nullptr;
  float grad_scale_ = 0;
  Ready ready_;
  Needs needs_;
  PinnedBuffer uploads_;  // a step's ids
  Event uploads_done_;    // of the step before
};

}  // namespace cubit

#endif  // CUBIT_LAUNCH_MODEL_STAGE_H_
