// SPDX-License-Identifier: Apache-2.0

#include "models/sequence_scorer.h"

#include <algorithm>
#include <utility>

#include "ops/embedding.h"
#include "runtime/status_macros.h"

namespace cubit {

SequenceScorer::Workspace SequenceScorer::Lay(int64_t batch_size,
                                              int64_t seq_len,
                                              Arena& arena) const {
  const ModelConfig& config = model_->config();
  const int64_t rows = batch_size * seq_len;
  const Shape hidden = {rows, config.hidden_size};
  Workspace space;
  Activations& a = space.activations;
  a.inputs = arena.Allocate(DType::kInt32, {batch_size, seq_len});
  a.targets = arena.Allocate(DType::kInt32, {rows});
  a.segment_ids = arena.Allocate(DType::kInt32, {batch_size, seq_len});
  a.embedded = arena.Allocate(config.activation_dtype, hidden);
  // A block reads the result of the one before it and nothing else.
  for (size_t i = 0; i < model_->blocks_.size() && i < 2; ++i) {
    a.blocks.push_back(
        model_->blocks_[i].AllocateSaved(batch_size, seq_len, arena));
  }
  a.final_norm = model_->final_norm_->AllocateSaved(rows, arena);
  a.losses = arena.Allocate(DType::kFloat32, {rows});
  if (config.positional_encoding == PositionKind::kRope) {
    space.scratch.rotary_table =
        arena.Allocate(DType::kFloat32, {seq_len, config.head_dim()});
  }
  space.scratch.head = model_->head_->AllocateScratch(rows, arena);
  space.positions = arena.Allocate(DType::kInt32, {rows});
  space.hidden = arena.Allocate(config.activation_dtype, hidden);
  return space;
}

int64_t SequenceScorer::BytesFor(int64_t batch_size, int64_t seq_len) const {
  Arena measure = Arena::Measuring();
  Lay(batch_size, seq_len, measure);
  return measure.used_bytes();
}

absl::Status SequenceScorer::Reserve(int64_t batch_size, int64_t seq_len) {
  if (arena_ != nullptr &&
      workspace_.activations.inputs.shape() == Shape({batch_size, seq_len})) {
    return absl::OkStatus();
  }
  // The old memory goes before the new is asked for.
  workspace_ = Workspace();
  arena_.reset();
  CUBIT_ASSIGN_OR_RETURN(Arena arena,
                         Arena::Create(BytesFor(batch_size, seq_len),
                                       MemoryCategory::kActivations));
  arena_ = std::make_unique<Arena>(std::move(arena));
  workspace_ = Lay(batch_size, seq_len, *arena_);
  model_->InitializeScratch(&workspace_.scratch, *stream_);
  return absl::OkStatus();
}

void SequenceScorer::Upload(const int32_t* ids, size_t count,
                            const Tensor& tensor) {
  CopyToDevice(tensor.raw(), ids, static_cast<int64_t>(count * sizeof(*ids)),
               *stream_);
}

void SequenceScorer::ForwardTrunk(const ScoringBatch& batch) {
  Activations& a = workspace_.activations;
  LayerContext context =
      model_->ContextFor(a, workspace_.scratch, {stream_, nullptr});
  Upload(batch.inputs.data(), batch.inputs.size(), a.inputs);
  if (batch.segment_ids.empty()) {
    context.mask.segment_ids = ConstTensor();
  } else {
    Upload(batch.segment_ids.data(), batch.segment_ids.size(), a.segment_ids);
  }
  model_->embedding_->Forward(
      context, a.inputs.Reshape({a.inputs.num_elements()}), a.embedded);
  ConstTensor x = a.embedded;
  for (size_t layer = 0; layer < model_->blocks_.size(); ++layer) {
    BlockSaved& saved = a.blocks[layer % 2];
    model_->blocks_[layer].Forward(context, x, &saved);
    x = saved.out;
  }
  model_->final_norm_->Forward(context, x, &a.final_norm);
}

void SequenceScorer::ScorePositions(const ScoringBatch& batch, size_t begin,
                                    size_t count, float* losses) {
  const Activations& a = workspace_.activations;
  const auto rows = static_cast<int64_t>(count);
  Upload(batch.positions.data() + begin, count, workspace_.positions);
  Upload(batch.targets.data() + begin, count, a.targets);
  // A table's rows by number: what the embedding does, on hidden states.
  const Tensor hidden = workspace_.hidden.Slice(0, rows);
  EmbeddingForward(workspace_.positions.Slice(0, rows), a.final_norm.y, hidden,
                   *stream_);
  LayerContext context;
  context.stream = stream_;
  const Tensor result = a.losses.Slice(0, rows);
  model_->head_->Loss(context, hidden, a.targets.Slice(0, rows),
                      workspace_.scratch.head, result);
  CopyToHost(losses, result.raw(), result.size_bytes(), *stream_);
}

absl::StatusOr<std::vector<float>> SequenceScorer::Score(
    const ScoringBatch& batch) {
  const auto rows = static_cast<size_t>(batch.batch_size * batch.seq_len);
  const size_t count = batch.positions.size();
  CUBIT_CHECK_EQ(batch.inputs.size(), rows);
  CUBIT_CHECK(batch.segment_ids.empty() || batch.segment_ids.size() == rows);
  CUBIT_CHECK_EQ(batch.targets.size(), count);
  CUBIT_RETURN_IF_ERROR(Reserve(batch.batch_size, batch.seq_len));
  ForwardTrunk(batch);
  std::vector<float> losses(count);
  for (size_t begin = 0; begin < count; begin += rows) {
    ScorePositions(batch, begin, std::min(rows, count - begin),
                   losses.data() + begin);
  }
  stream_->Synchronize();
  return losses;
}

}  // namespace cubit
