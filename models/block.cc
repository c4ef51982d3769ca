// SPDX-License-Identifier: Apache-2.0

#include "models/block.h"

#include "ops/elementwise.h"

namespace cubit {

Block::Block(ParameterStore* store, const std::string& name,
             const ModelConfig& config, const TokenMixer* mixer)
    : hidden_size_(config.hidden_size),
      mixer_norm_(store, name + ".mixer_norm", config),
      mixer_(store, name + ".mixer", config, mixer),
      mlp_norm_(store, name + ".mlp_norm", config),
      mlp_(store, name + ".mlp", config) {}

BlockSaved Block::AllocateSaved(int64_t batch, int64_t seq_len,
                                Arena& arena) const {
  const int64_t rows = batch * seq_len;
  BlockSaved saved;
  saved.mixer_norm = mixer_norm_.AllocateSaved(rows, arena);
  saved.mixer = mixer_.AllocateSaved(batch, seq_len, arena);
  saved.residual = arena.Allocate(DType::kFloat32, {rows, hidden_size_});
  saved.mlp_norm = mlp_norm_.AllocateSaved(rows, arena);
  saved.mlp = mlp_.AllocateSaved(rows, arena);
  saved.out = arena.Allocate(DType::kFloat32, {rows, hidden_size_});
  return saved;
}

BlockScratch Block::AllocateScratch(int64_t batch, int64_t seq_len,
                                    Arena& arena) const {
  const int64_t rows = batch * seq_len;
  BlockScratch scratch;
  scratch.d_branch = arena.Allocate(DType::kFloat32, {rows, hidden_size_});
  scratch.mixer = mixer_.AllocateScratch(batch, seq_len, arena);
  scratch.mlp = mlp_.AllocateScratch(rows, arena);
  return scratch;
}

void Block::Forward(const LayerContext& context, ConstTensor x,
                    BlockSaved* saved) const {
  mixer_norm_.Forward(context, x, &saved->mixer_norm);
  mixer_.Forward(context, saved->mixer_norm.y, &saved->mixer, saved->residual);
  AddInPlace(x, saved->residual, *context.stream);
  ForwardMlp(context, saved);
}

void Block::ForwardMlp(const LayerContext& context, BlockSaved* saved) const {
  mlp_norm_.Forward(context, saved->residual, &saved->mlp_norm);
  mlp_.Forward(context, saved->mlp_norm.y, &saved->mlp, saved->out);
  AddInPlace(saved->residual, saved->out, *context.stream);
}

void Block::Backward(const LayerContext& context, ConstTensor x,
                     const BlockSaved& saved, const BlockScratch& scratch,
                     Tensor d) const {
  mlp_.Backward(context, d, saved.mlp_norm.y, saved.mlp, scratch.mlp,
                scratch.d_branch);
  mlp_norm_.Backward(context, scratch.d_branch, saved.residual, saved.mlp_norm,
                     d);
  mixer_.Backward(context, d, saved.mixer_norm.y, saved.mixer, scratch.mixer,
                  scratch.d_branch);
  mixer_norm_.Backward(context, scratch.d_branch, x, saved.mixer_norm, d);
}

void Block::Decode(const LayerContext& context,
                   absl::Span<const DecodeRow> rows, ConstTensor x,
                   BlockSaved* saved) const {
  mixer_norm_.Forward(context, x, &saved->mixer_norm);
  mixer_.Decode(context, rows, saved->mixer_norm.y, &saved->mixer,
                saved->residual);
  AddInPlace(x, saved->residual, *context.stream);
  ForwardMlp(context, saved);
}

}  // namespace cubit
