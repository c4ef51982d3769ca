// SPDX-License-Identifier: Apache-2.0

#include "models/language_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "models/initialization.h"
#include "models/mixers/registry.h"
#include "ops/matmul.h"
#include "ops/rotary.h"
#include "runtime/profile_range.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr char kEmbedding[] = "embedding";

Tensor Flat(const Tensor& ids) { return ids.Reshape({ids.num_elements()}); }

void NothingWaits(size_t, size_t) {}

}  // namespace

absl::StatusOr<std::unique_ptr<LanguageModel>> LanguageModel::Create(
    const ModelConfig& config, const ModelShard& shard) {
  CUBIT_ASSIGN_OR_RETURN(std::unique_ptr<TokenMixer> mixer, MakeMixer(config));
  return std::unique_ptr<LanguageModel>(
      new LanguageModel(config, shard, std::move(mixer)));
}

LanguageModel::LanguageModel(const ModelConfig& config, const ModelShard& shard,
                             std::unique_ptr<TokenMixer> mixer)
    : config_(config), shard_(shard), mixer_(std::move(mixer)) {
  if (shard_.chunks.empty()) shard_.chunks = {{0, config.num_layers}};
  const bool tied = config.tied_embeddings;
  if (shard_.embedding || (shard_.head && tied)) {
    embedding_ = std::make_unique<TokenEmbedding>(&parameters_, "embedding",
                                                  config, shard_);
    embedding_->weight().sum_over_ends =
        tied && shard_.embedding != shard_.head;
    embedding_range_ = DeclaredSince(0);
  }
  for (const LayerRange& range : shard_.chunks) {
    chunks_.push_back({num_local_layers(), range.count});
    for (int64_t layer = range.begin; layer < range.begin + range.count;
         ++layer) {
      const size_t first = parameters_.parameters().size();
      blocks_.emplace_back(&parameters_, absl::StrCat("layers.", layer), config,
                           shard_, mixer_.get());
      block_ranges_.push_back(DeclaredSince(first));
    }
  }
  if (!shard_.head) return;
  const size_t first = parameters_.parameters().size();
  final_norm_ =
      std::make_unique<Norm>(&parameters_, "final_norm", config, shard_);
  head_ =
      std::make_unique<LanguageHead>(&parameters_, "head", config, shard_,
                                     tied ? &embedding_->weight() : nullptr);
  head_range_ = DeclaredSince(first);
}

LanguageModel::Range LanguageModel::DeclaredSince(size_t first) const {
  return {first, parameters_.parameters().size()};
}

Activations LanguageModel::AllocateActivations(int64_t batch, int64_t seq_len,
                                               Arena& arena,
                                               Recompute recompute,
                                               int chunk) const {
  Activations a;
  a.recompute = recompute;
  const int64_t local_seq_len = seq_len / shard_.cp_size;
  const int64_t rows = shard_.LocalRows(batch, seq_len);
  a.inputs = arena.Allocate(DType::kInt32, {batch, local_seq_len});
  a.targets = arena.Allocate(DType::kInt32, {batch, local_seq_len});
  if (config_.document_mask) {
    a.segment_ids =
        arena.Allocate(DType::kInt32, shard_.SegmentsShape(batch, seq_len));
  }
  a.embedded =
      arena.Allocate(config_.activation_dtype, {rows, config_.hidden_size});
  const LayerRange& layers = chunks_[static_cast<size_t>(chunk)];
  for (int64_t i = layers.begin; i < layers.begin + layers.count; ++i) {
    const BlockSaved* first = a.blocks.empty() ? nullptr : &a.blocks[0];
    a.blocks.push_back(blocks_[static_cast<size_t>(i)].AllocateSaved(
        batch, seq_len, arena, recompute, first));
  }
  if (has_head(chunk)) {
    a.final_norm = final_norm_->AllocateSaved(rows, arena);
    a.losses = arena.Allocate(DType::kFloat32, {shard_.Rows(batch, seq_len)});
  }
  return a;
}

ModelScratch LanguageModel::AllocateScratch(int64_t batch, int64_t seq_len,
                                            Arena& arena) const {
  ModelScratch scratch;
  const DType dtype = config_.activation_dtype;
  const Shape rows = {shard_.LocalRows(batch, seq_len), config_.hidden_size};
  scratch.d = arena.Allocate(dtype, rows);
  if (shard_.head) scratch.d_final = arena.Allocate(dtype, rows);
  if (shard_.tp_size > 1) {
    const Shape all = {shard_.Rows(batch, seq_len), config_.hidden_size};
    scratch.gathered = arena.Allocate(dtype, all);
    scratch.partial = arena.Allocate(dtype, all);
  }
  if (config_.positional_encoding == PositionKind::kRope) {
    scratch.rotary_table =
        arena.Allocate(DType::kFloat32, {seq_len, config_.head_dim()});
  }
  if (!blocks_.empty()) {
    scratch.block = blocks_[0].AllocateScratch(batch, seq_len, arena);
  }
  if (shard_.head) {
    scratch.head = head_->AllocateScratch(shard_.Rows(batch, seq_len), arena);
  }
  return scratch;
}

void LanguageModel::InitializeScratch(ModelScratch* scratch,
                                      Stream& stream) const {
  if (scratch->rotary_table.empty()) return;
  RotaryTable(config_.rope_base, scratch->rotary_table, stream);
}

LayerContext LanguageModel::ContextFor(const Activations& activations,
                                       const ModelScratch& scratch,
                                       const ChunkContext& context) const {
  LayerContext result;
  result.stream = context.stream;
  result.rotary_table = scratch.rotary_table;
  result.mask.segment_ids = activations.segment_ids;
  result.parallel = context.parallel;
  result.first_backward = context.first_backward;
  if (result.parallel != nullptr) {
    result.parallel->gathered = scratch.gathered;
    result.parallel->partial = scratch.partial;
    result.parallel->mixer_scratch = &scratch.block.mixer;
  }
  return result;
}

Tensor LanguageModel::BlockInput(const Activations& activations, size_t index) {
  return index == 0 ? activations.embedded : activations.blocks[index - 1].out;
}

Tensor LanguageModel::ChunkOutput(const Activations& activations) {
  return BlockInput(activations, activations.blocks.size());
}

void LanguageModel::ForwardChunk(int chunk, const ChunkContext& context,
                                 Activations* activations,
                                 ModelScratch* scratch) const {
  const LayerContext layer_context =
      ContextFor(*activations, *scratch, context);
  const auto need = [&context](const Range& range) {
    if (context.needed != nullptr) (*context.needed)(range.first, range.last);
  };
  if (has_embedding(chunk)) {
    need(embedding_range_);
    const ProfileRange range(kEmbedding, *context.stream);
    embedding_->Forward(layer_context, Flat(activations->inputs),
                        activations->embedded);
  }
  const auto first =
      static_cast<size_t>(chunks_[static_cast<size_t>(chunk)].begin);
  for (size_t i = 0; i < activations->blocks.size(); ++i) {
    const ProfileLabel label("forward", static_cast<int64_t>(first + i));
    need(block_ranges_[first + i]);
    blocks_[first + i].Forward(layer_context, BlockInput(*activations, i),
                               &activations->blocks[i]);
  }
  if (!has_head(chunk)) return;
  need(head_range_);
  final_norm_->Forward(layer_context, ChunkOutput(*activations),
                       &activations->final_norm);
}

void LanguageModel::Losses(const ChunkContext& context,
                           Activations* activations,
                           ModelScratch* scratch) const {
  head_->Loss(ContextFor(*activations, *scratch, context),
              activations->final_norm.y, Flat(activations->targets),
              scratch->head, activations->losses);
}

Tensor LanguageModel::BiasGradientBefore(int chunk, size_t index) const {
  if (index == 0) return Tensor();
  const auto first =
      static_cast<size_t>(chunks_[static_cast<size_t>(chunk)].begin);
  return blocks_[first + index - 1].OutBiasGradient();
}

void LanguageModel::SumReceivedGradient(int chunk, const LayerContext& context,
                                        const ModelScratch& scratch) const {
  const ProfileRange range("linear", *context.stream);
  const auto count =
      static_cast<size_t>(chunks_[static_cast<size_t>(chunk)].count);
  LinearBackwardBias(scratch.d, BiasGradientBefore(chunk, count),
                     *context.stream);
}

void LanguageModel::BackwardHead(int chunk, const LayerContext& context,
                                 float grad_scale, Activations* activations,
                                 ModelScratch* scratch) const {
  head_->LossAndGradient(context, activations->final_norm.y,
                         Flat(activations->targets), grad_scale, scratch->head,
                         activations->losses, scratch->d_final);
  const Tensor& d = scratch->d;
  SetZero(d.raw(), d.size_bytes(), *context.stream);
  final_norm_->Backward(context, scratch->d_final, ChunkOutput(*activations),
                        activations->final_norm, d,
                        BiasGradientBefore(chunk, activations->blocks.size()));
}

void LanguageModel::BackwardBlocks(int chunk, const LayerContext& context,
                                   Activations* activations,
                                   ModelScratch* scratch, Tensor health,
                                   GradientsReady ready) const {
  const auto first =
      static_cast<size_t>(chunks_[static_cast<size_t>(chunk)].begin);
  const size_t count = activations->blocks.size();
  for (size_t i = count; i-- > 0;) {
    const size_t layer = first + i;
    const ProfileLabel label("backward", static_cast<int64_t>(layer));
    const Block& block = blocks_[layer];
    const ConstTensor x = BlockInput(*activations, i);
    BlockSaved& saved = activations->blocks[i];
    // The common memory still holds what the last block left there.
    if (i + 1 < count) {
      block.RecomputeForward(context, x, activations->recompute, &saved);
    }
    block.Backward(
        context, x, saved, scratch->block, scratch->d,
        BiasGradientBefore(chunk, i),
        health.empty()
            ? Tensor()
            : health.Slice(static_cast<int64_t>(layer), 1).Reshape({3}));
    ready(block_ranges_[layer].first, block_ranges_[layer].last);
  }
}

void LanguageModel::BackwardChunk(int chunk, const ChunkContext& context,
                                  float grad_scale, Activations* activations,
                                  ModelScratch* scratch, Tensor health,
                                  GradientsReady ready) const {
  const LayerContext layer_context =
      ContextFor(*activations, *scratch, context);
  if (has_head(chunk)) {
    BackwardHead(chunk, layer_context, grad_scale, activations, scratch);
    ready(head_range_.first, head_range_.last);
    // Here only the head adds to tied weights.
    if (embedding_ != nullptr && !shard_.embedding) {
      ready(embedding_range_.first, embedding_range_.last);
    }
  } else {
    SumReceivedGradient(chunk, layer_context, *scratch);
  }
  BackwardBlocks(chunk, layer_context, activations, scratch, health, ready);
  if (!has_embedding(chunk)) return;
  const ProfileRange range(kEmbedding, *context.stream);
  embedding_->Backward(layer_context, Flat(activations->inputs), scratch->d);
  ready(embedding_range_.first, embedding_range_.last);
}

void LanguageModel::Forward(Activations* activations, ModelScratch* scratch,
                            Stream& stream) const {
  const ChunkContext context = {&stream, nullptr, nullptr};
  ForwardChunk(0, context, activations, scratch);
  Losses(context, activations, scratch);
}

void LanguageModel::ForwardBackward(float grad_scale, Activations* activations,
                                    ModelScratch* scratch, Stream& stream,
                                    Tensor health) const {
  const ChunkContext context = {&stream, nullptr, nullptr};
  ForwardChunk(0, context, activations, scratch);
  BackwardChunk(0, context, grad_scale, activations, scratch, health,
                NothingWaits);
}

double LanguageModel::TrainFlops(int64_t batch, int64_t seq_len) const {
  // Every matrix takes part in one product a token; of the vocabulary's, the
  // head's alone, and of that the rows that are no padding.
  double weights = 0;
  if (shard_.head) {
    weights += static_cast<double>(head_->num_logits() * config_.hidden_size);
  }
  for (const Parameter& parameter : parameters_.parameters()) {
    if (parameter.shard.global_shape.rank() != 2) continue;
    if (embedding_ != nullptr && &parameter == &embedding_->weight()) continue;
    if (head_ != nullptr && &parameter == &head_->weight()) continue;
    weights +=
        static_cast<double>(parameter.shard.local_shape().num_elements());
  }
  const MixerShape shape = {batch, seq_len, shard_.Local(config_.num_heads),
                            config_.head_dim()};
  return 6 * weights * static_cast<double>(shard_.Rows(batch, seq_len)) +
         3 * static_cast<double>(num_local_layers()) *
             mixer_->ForwardFlops(shape) / shard_.cp_size;
}

}  // namespace cubit
