// SPDX-License-Identifier: Apache-2.0

#include "models/block.h"

namespace cubit {

Block::Block(ParameterStore* store, const std::string& name,
             const ModelConfig& config, const ModelShard& shard,
             const TokenMixer* mixer)
    : shard_(shard),
      hidden_size_(config.hidden_size),
      dtype_(config.activation_dtype),
      mixer_norm_(store, name + ".mixer_norm", config, shard),
      mixer_(store, name + ".mixer", config, shard, mixer),
      mlp_norm_(store, name + ".mlp_norm", config, shard),
      mlp_(store, name + ".mlp", config, shard) {}

BlockSaved Block::AllocateSaved(int64_t batch, int64_t seq_len, Arena& arena,
                                Recompute recompute,
                                const BlockSaved* shared) const {
  const int64_t rows = shard_.LocalRows(batch, seq_len);
  const Shape hidden = {rows, hidden_size_};
  BlockSaved saved;
  if (shared != nullptr && recompute == Recompute::kFull) {
    saved = *shared;
    saved.out = arena.Allocate(dtype_, hidden);
    return saved;
  }
  const bool share = shared != nullptr && recompute == Recompute::kSelective;
  saved.mixer_norm = mixer_norm_.AllocateSaved(
      rows, arena, share ? &shared->mixer_norm.y : nullptr);
  saved.mixer = mixer_.AllocateSaved(batch, seq_len, arena);
  saved.residual = arena.Allocate(dtype_, hidden);
  saved.mlp_norm = mlp_norm_.AllocateSaved(
      rows, arena, share ? &shared->mlp_norm.y : nullptr);
  saved.mlp = mlp_.AllocateSaved(shard_.Rows(batch, seq_len), arena,
                                 share ? &shared->mlp.activation : nullptr);
  saved.out = arena.Allocate(dtype_, hidden);
  return saved;
}

BlockScratch Block::AllocateScratch(int64_t batch, int64_t seq_len,
                                    Arena& arena) const {
  BlockScratch scratch;
  scratch.d_branch =
      arena.Allocate(dtype_, {shard_.LocalRows(batch, seq_len), hidden_size_});
  scratch.mixer = mixer_.AllocateScratch(batch, seq_len, arena);
  scratch.mlp = mlp_.AllocateScratch(shard_.Rows(batch, seq_len), arena);
  return scratch;
}

void Block::Forward(const LayerContext& context, ConstTensor x,
                    BlockSaved* saved) const {
  mixer_norm_.Forward(context, x, &saved->mixer_norm);
  mixer_.Forward(context, saved->mixer_norm.y, x, &saved->mixer,
                 saved->residual);
  ForwardMlp(context, saved);
}

void Block::ForwardMlp(const LayerContext& context, BlockSaved* saved) const {
  mlp_norm_.Forward(context, saved->residual, &saved->mlp_norm);
  mlp_.Forward(context, saved->mlp_norm.y, saved->residual, &saved->mlp,
               saved->out);
}

void Block::RecomputeForward(const LayerContext& context, ConstTensor x,
                             Recompute recompute, BlockSaved* saved) const {
  if (recompute == Recompute::kNone) return;
  mixer_norm_.Forward(context, x, &saved->mixer_norm);
  if (recompute == Recompute::kFull) {
    mixer_.Forward(context, saved->mixer_norm.y, x, &saved->mixer,
                   saved->residual);
  }
  mlp_norm_.Forward(context, saved->residual, &saved->mlp_norm);
  if (recompute == Recompute::kFull) {
    mlp_.Recompute(context, saved->mlp_norm.y, &saved->mlp);
  } else {
    mlp_.RecomputeActivation(context, &saved->mlp);
  }
}

void Block::Backward(const LayerContext& context, ConstTensor x,
                     const BlockSaved& saved, const BlockScratch& scratch,
                     Tensor d, Tensor d_x_sums, Tensor health) const {
  mlp_.Backward(context, d, saved.mlp_norm.y, saved.mlp, scratch.mlp,
                scratch.d_branch);
  mlp_norm_.Backward(context, scratch.d_branch, saved.residual, saved.mlp_norm,
                     d, mixer_.OutBiasGradient());
  mixer_.Backward(context, d, saved.mixer_norm.y, saved.mixer, scratch.mixer,
                  scratch.d_branch, health);
  mixer_norm_.Backward(context, scratch.d_branch, x, saved.mixer_norm, d,
                       d_x_sums);
}

void Block::Decode(const LayerContext& context,
                   absl::Span<const DecodeRow> rows, ConstTensor x,
                   BlockSaved* saved) const {
  mixer_norm_.Forward(context, x, &saved->mixer_norm);
  mixer_.Decode(context, rows, saved->mixer_norm.y, x, &saved->mixer,
                saved->residual);
  ForwardMlp(context, saved);
}

}  // namespace cubit
