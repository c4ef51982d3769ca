// SPDX-License-Identifier: Apache-2.0

#include "models/language_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "models/initialization.h"
#include "models/mixers/registry.h"
#include "ops/embedding.h"
#include "ops/rotary.h"
#include "runtime/profile_range.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr char kEmbedding[] = "embedding";

Tensor Flat(const Tensor& ids) { return ids.Reshape({ids.num_elements()}); }

}  // namespace

absl::StatusOr<std::unique_ptr<LanguageModel>> LanguageModel::Create(
    const ModelConfig& config) {
  CUBIT_ASSIGN_OR_RETURN(std::unique_ptr<TokenMixer> mixer, MakeMixer(config));
  return std::unique_ptr<LanguageModel>(
      new LanguageModel(config, std::move(mixer)));
}

LanguageModel::LanguageModel(const ModelConfig& config,
                             std::unique_ptr<TokenMixer> mixer)
    : config_(config), mixer_(std::move(mixer)) {
  const ModelShard shard;
  embedding_ =
      parameters_.Add("embedding.weight",
                      ShardSpec::Whole({config.vocab_size, config.hidden_size}),
                      Initializer::Normal(InputStddev(config)), /*decay=*/true);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    blocks_.emplace_back(&parameters_, absl::StrCat("layers.", layer), config,
                         shard, mixer_.get());
  }
  final_norm_ =
      std::make_unique<Norm>(&parameters_, "final_norm", config, shard);
  head_ = std::make_unique<LanguageHead>(
      &parameters_, "head", config, shard,
      config.tied_embeddings ? embedding_ : nullptr);
}

Activations LanguageModel::AllocateActivations(int64_t batch, int64_t seq_len,
                                               Arena& arena,
                                               Recompute recompute) const {
  Activations a;
  a.recompute = recompute;
  const int64_t rows = batch * seq_len;
  a.inputs = arena.Allocate(DType::kInt32, {batch, seq_len});
  a.targets = arena.Allocate(DType::kInt32, {batch, seq_len});
  if (config_.document_mask) {
    a.segment_ids = arena.Allocate(DType::kInt32, {batch, seq_len});
  }
  a.embedded =
      arena.Allocate(config_.activation_dtype, {rows, config_.hidden_size});
  for (const Block& block : blocks_) {
    const BlockSaved* first = a.blocks.empty() ? nullptr : &a.blocks[0];
    a.blocks.push_back(
        block.AllocateSaved(batch, seq_len, arena, recompute, first));
  }
  a.final_norm = final_norm_->AllocateSaved(rows, arena);
  a.losses = arena.Allocate(DType::kFloat32, {rows});
  return a;
}

ModelScratch LanguageModel::AllocateScratch(int64_t batch, int64_t seq_len,
                                            Arena& arena) const {
  ModelScratch scratch;
  const Shape rows = {batch * seq_len, config_.hidden_size};
  scratch.d = arena.Allocate(config_.activation_dtype, rows);
  scratch.d_final = arena.Allocate(config_.activation_dtype, rows);
  if (config_.positional_encoding == PositionKind::kRope) {
    scratch.rotary_table =
        arena.Allocate(DType::kFloat32, {seq_len, config_.head_dim()});
  }
  if (!blocks_.empty()) {
    scratch.block = blocks_[0].AllocateScratch(batch, seq_len, arena);
  }
  scratch.head = head_->AllocateScratch(batch * seq_len, arena);
  return scratch;
}

void LanguageModel::InitializeScratch(ModelScratch* scratch,
                                      Stream& stream) const {
  if (scratch->rotary_table.empty()) return;
  RotaryTable(config_.rope_base, scratch->rotary_table, stream);
}

LayerContext LanguageModel::ContextFor(const Activations& activations,
                                       const ModelScratch& scratch,
                                       Stream& stream) const {
  LayerContext context;
  context.stream = &stream;
  context.rotary_table = scratch.rotary_table;
  context.mask.segment_ids = activations.segment_ids;
  return context;
}

ConstTensor LanguageModel::BlockInput(const Activations& activations,
                                      size_t layer) {
  return layer == 0 ? activations.embedded : activations.blocks[layer - 1].out;
}

void LanguageModel::ForwardTrunk(const LayerContext& context,
                                 Activations* activations) const {
  {
    const ProfileRange range(kEmbedding, *context.stream);
    EmbeddingForward(Flat(activations->inputs), embedding_->compute,
                     activations->embedded, *context.stream);
  }
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const ProfileLabel label("forward", static_cast<int64_t>(layer));
    blocks_[layer].Forward(context, BlockInput(*activations, layer),
                           &activations->blocks[layer]);
  }
  final_norm_->Forward(context, BlockInput(*activations, blocks_.size()),
                       &activations->final_norm);
}

void LanguageModel::Forward(Activations* activations, ModelScratch* scratch,
                            Stream& stream) const {
  const LayerContext context = ContextFor(*activations, *scratch, stream);
  ForwardTrunk(context, activations);
  head_->Loss(context, activations->final_norm.y, Flat(activations->targets),
              scratch->head, activations->losses);
}

void LanguageModel::ForwardBackward(float grad_scale, Activations* activations,
                                    ModelScratch* scratch, Stream& stream,
                                    Tensor health) const {
  const LayerContext context = ContextFor(*activations, *scratch, stream);
  ForwardTrunk(context, activations);
  head_->LossAndGradient(context, activations->final_norm.y,
                         Flat(activations->targets), grad_scale, scratch->head,
                         activations->losses, scratch->d_final);
  const Tensor& d = scratch->d;
  SetZero(d.raw(), d.size_bytes(), stream);
  final_norm_->Backward(context, scratch->d_final,
                        BlockInput(*activations, blocks_.size()),
                        activations->final_norm, d);
  for (size_t layer = blocks_.size(); layer-- > 0;) {
    const ProfileLabel label("backward", static_cast<int64_t>(layer));
    const Block& block = blocks_[layer];
    const ConstTensor x = BlockInput(*activations, layer);
    BlockSaved& saved = activations->blocks[layer];
    // The common memory still holds what the last block left there.
    if (layer + 1 < blocks_.size()) {
      block.RecomputeForward(context, x, activations->recompute, &saved);
    }
    if (!health.empty()) {
      const ProfileRange range("health", stream);
      block.mixer().Health(
          context, saved.mixer,
          health.Slice(static_cast<int64_t>(layer), 1).Reshape({3}));
    }
    block.Backward(context, x, saved, scratch->block, d);
  }
  const ProfileRange range(kEmbedding, stream);
  EmbeddingBackward(Flat(activations->inputs), d, embedding_->gradient, stream);
}

double LanguageModel::TrainFlops(int64_t batch, int64_t seq_len) const {
  // Every matrix takes part in one product a token; of the vocabulary's, the
  // head's alone, and of that the rows that are no padding.
  double weights =
      static_cast<double>(head_->num_logits() * config_.hidden_size);
  for (const Parameter& parameter : parameters_.parameters()) {
    if (parameter.value.shape().rank() != 2) continue;
    if (&parameter == embedding_ || &parameter == &head_->weight()) continue;
    weights += static_cast<double>(parameter.value.num_elements());
  }
  const MixerShape shape = {batch, seq_len, config_.num_heads,
                            config_.head_dim()};
  return 6 * weights * static_cast<double>(batch * seq_len) +
         3 * static_cast<double>(config_.num_layers) *
             mixer_->ForwardFlops(shape);
}

}  // namespace cubit
