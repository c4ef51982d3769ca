// SPDX-License-Identifier: Apache-2.0

#include "launch/model_stage.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/check.h"
#include "runtime/profile_range.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Inputs, targets and segments are uploaded for each micro-batch and chunk.
constexpr int64_t kIdTensors = 3;

}  // namespace

ModelStage::ModelStage(const LanguageModel* model, const StageShape& shape,
                       const std::vector<PipelineAction>& actions)
    : model_(model),
      shape_(shape),
      buffers_(actions, shape.pipeline),
      sequence_(shape.seq_len, model->shard().cp_size) {
  CUBIT_CHECK_EQ(model->num_chunks(), shape.pipeline.num_chunks);
}

void ModelStage::LayOutActivations(Arena& arena) {
  slots_.clear();
  for (int chunk = 0; chunk < model_->num_chunks(); ++chunk) {
    std::vector<Activations>& slots = slots_.emplace_back();
    for (int i = 0; i < buffers_.num_slots(chunk); ++i) {
      slots.push_back(model_->AllocateActivations(
          shape_.batch, shape_.seq_len, arena, shape_.recompute, chunk));
    }
  }
  if (model_->shard().head) {
    step_losses_ = arena.Allocate(
        DType::kFloat32, {shape_.pipeline.num_micro_batches,
                          model_->shard().Rows(shape_.batch, shape_.seq_len)});
  }
  if (model_->has_health()) {
    health_ = arena.Allocate(DType::kFloat32, {model_->num_local_layers(), 3});
  }
}

void ModelStage::LayOutWorkspace(Arena& arena) {
  scratch_ = model_->AllocateScratch(shape_.batch, shape_.seq_len, arena);
  gradients_ = {scratch_.d};
  while (static_cast<int>(gradients_.size()) < buffers_.num_gradients()) {
    gradients_.push_back(
        arena.Allocate(scratch_.d.dtype(), scratch_.d.shape()));
  }
}

int64_t ModelStage::UploadBytes() const {
  return kIdTensors * shape_.batch * shape_.seq_len * SizeOf(DType::kInt32);
}

absl::Status ModelStage::Prepare(Stream* stream, ParallelContext* parallel) {
  stream_ = stream;
  parallel_ = parallel;
  model_->InitializeScratch(&scratch_, *stream);
  CUBIT_ASSIGN_OR_RETURN(
      uploads_, PinnedBuffer::Allocate(shape_.pipeline.num_micro_batches *
                                       model_->num_chunks() * UploadBytes()));
  return absl::OkStatus();
}

void ModelStage::BeginStep(const std::vector<Batch>* batches, float grad_scale,
                           Ready ready, Needs needs) {
  CUBIT_CHECK_EQ(static_cast<int64_t>(batches->size()),
                 shape_.pipeline.num_micro_batches);
  uploads_done_.Synchronize();  // their memory is used again
  batches_ = batches;
  grad_scale_ = grad_scale;
  ready_ = std::move(ready);
  needs_ = std::move(needs);
}

Activations& ModelStage::Slot(int64_t micro_batch, int chunk) {
  return slots_[static_cast<size_t>(chunk)]
               [static_cast<size_t>(buffers_.slot(chunk, micro_batch))];
}

std::vector<int64_t> ModelStage::RowsOfBatch() const {
  std::vector<int64_t> rows;
  for (int64_t b = 0; b < shape_.batch; ++b) {
    for (const int chunk : sequence_.ChunksOf(model_->shard().cp_rank)) {
      const int64_t begin = b * shape_.seq_len + sequence_.GlobalBegin(chunk);
      for (int64_t t = 0; t < sequence_.chunk_len(); ++t) {
        rows.push_back(begin + t);
      }
    }
  }
  return rows;
}

void ModelStage::TakeLocalRows(const std::vector<int32_t>& ids,
                               int32_t* pinned) const {
  for (int64_t b = 0; b < shape_.batch; ++b) {
    for (const int chunk : sequence_.ChunksOf(model_->shard().cp_rank)) {
      const int64_t begin = b * shape_.seq_len + sequence_.GlobalBegin(chunk);
      pinned = std::copy_n(ids.begin() + begin, sequence_.chunk_len(), pinned);
    }
  }
}

void ModelStage::Upload(const Batch& batch, int64_t place,
                        const Activations& slot) {
  const ProfileRange range("upload", *stream_);
  CUBIT_CHECK_EQ(static_cast<int64_t>(batch.inputs.size()),
                 shape_.batch * shape_.seq_len);
  auto* pinned = reinterpret_cast<int32_t*>(
      static_cast<char*>(uploads_.data()) + place * UploadBytes());
  for (const auto& [ids, tensor] : {std::pair(&batch.inputs, slot.inputs),
                                    std::pair(&batch.targets, slot.targets)}) {
    TakeLocalRows(*ids, pinned);
    CopyToDevice(tensor.raw(), pinned, tensor.size_bytes(), *stream_);
    pinned += tensor.num_elements();
  }
  if (slot.segment_ids.empty()) return;
  if (model_->shard().shards_sequence()) {
    sequence_.OrderByChunks(shape_.batch, batch.segment_ids.data(), pinned);
  } else {
    std::copy(batch.segment_ids.begin(), batch.segment_ids.end(), pinned);
  }
  CopyToDevice(slot.segment_ids.raw(), pinned, slot.segment_ids.size_bytes(),
               *stream_);
}

void ModelStage::Forward(int64_t micro_batch, int chunk) {
  Activations& slot = Slot(micro_batch, chunk);
  Upload((*batches_)[static_cast<size_t>(micro_batch)],
         micro_batch * model_->num_chunks() + chunk, slot);
  if (micro_batch + 1 == shape_.pipeline.num_micro_batches) {
    uploads_done_.Record(*stream_);
  }
  ChunkContext context = Context();
  if (micro_batch == 0 && needs_) context.needed = &needs_;
  model_->ForwardChunk(chunk, context, &slot, &scratch_);
}

void ModelStage::Backward(int64_t micro_batch, int chunk) {
  Activations& slot = Slot(micro_batch, chunk);
  scratch_.d =
      gradients_[static_cast<size_t>(buffers_.gradient(chunk, micro_batch))];
  const bool is_last = micro_batch + 1 == shape_.pipeline.num_micro_batches;
  ChunkContext context = Context();
  // Schedules take the micro-batches of a chunk in their order.
  context.first_backward = micro_batch == 0;
  model_->BackwardChunk(chunk, context, grad_scale_, &slot, &scratch_,
                        is_last ? health_ : Tensor(),
                        [this, is_last](size_t first, size_t last) {
                          if (is_last && ready_) ready_(first, last);
                        });
  if (slot.losses.empty()) return;
  const Tensor losses = step_losses_.Slice(micro_batch, 1);
  CopyOnDevice(losses.raw(), slot.losses.raw(), losses.size_bytes(), *stream_);
}

Tensor ModelStage::Input(int64_t micro_batch, int chunk) {
  return Slot(micro_batch, chunk).embedded;
}

ConstTensor ModelStage::Output(int64_t micro_batch, int chunk) {
  return LanguageModel::ChunkOutput(Slot(micro_batch, chunk));
}

Tensor ModelStage::OutputGradient(int64_t micro_batch, int chunk) {
  return gradients_[static_cast<size_t>(buffers_.gradient(chunk, micro_batch))];
}

ConstTensor ModelStage::InputGradient(int64_t micro_batch, int chunk) {
  return OutputGradient(micro_batch, chunk);
}

const Tensor& ModelStage::losses_of_evaluation() const {
  return slots_.back()[0].losses;
}

absl::Status ModelStage::Evaluate(const Batch& batch, Communicator& pp) {
  const int num_chunks = model_->num_chunks();
  const int parts = pp.size() * num_chunks;
  uploads_done_.Synchronize();
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    Activations& slot = slots_[static_cast<size_t>(chunk)][0];
    const int part = chunk * pp.size() + pp.rank();
    Upload(batch, chunk, slot);
    if (part > 0) {
      const int from = (pp.rank() + pp.size() - 1) % pp.size();
      CUBIT_RETURN_IF_ERROR(pp.Recv(slot.embedded, from, *stream_));
    }
    model_->ForwardChunk(chunk, Context(), &slot, &scratch_);
    if (part + 1 < parts) {
      CUBIT_RETURN_IF_ERROR(pp.Send(LanguageModel::ChunkOutput(slot),
                                    (pp.rank() + 1) % pp.size(), *stream_));
    } else {
      model_->Losses(Context(), &slot, &scratch_);
    }
  }
  uploads_done_.Record(*stream_);
  return parallel_ == nullptr ? absl::OkStatus() : parallel_->status;
}

}  // namespace cubit
