// SPDX-License-Identifier: Apache-2.0

#include "models/language_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "models/initialization.h"
#include "models/mixers/registry.h"
#include "ops/embedding.h"
#include "ops/rotary.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

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
  embedding_ =
      parameters_.Add("embedding.weight",
                      ShardSpec::Whole({config.vocab_size, config.hidden_size}),
                      Initializer::Normal(InputStddev(config)), /*decay=*/true);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    blocks_.emplace_back(&parameters_, absl::StrCat("layers.", layer), config,
                         mixer_.get());
  }
  final_norm_ = std::make_unique<Norm>(&parameters_, "final_norm", config);
  head_ = std::make_unique<LanguageHead>(
      &parameters_, "head", config,
      config.tied_embeddings ? embedding_ : nullptr);
}

Activations LanguageModel::AllocateActivations(int64_t batch, int64_t seq_len,
                                               Arena& arena) const {
  Activations a;
  const int64_t rows = batch * seq_len;
  a.inputs = arena.Allocate(DType::kInt32, {batch, seq_len});
  a.targets = arena.Allocate(DType::kInt32, {batch, seq_len});
  if (config_.document_mask) {
    a.segment_ids = arena.Allocate(DType::kInt32, {batch, seq_len});
  }
  a.embedded = arena.Allocate(DType::kFloat32, {rows, config_.hidden_size});
  for (const Block& block : blocks_) {
    a.blocks.push_back(block.AllocateSaved(batch, seq_len, arena));
  }
  a.final_norm = final_norm_->AllocateSaved(rows, arena);
  a.losses = arena.Allocate(DType::kFloat32, {rows});
  return a;
}

ModelScratch LanguageModel::AllocateScratch(int64_t batch, int64_t seq_len,
                                            Arena& arena) const {
  ModelScratch scratch;
  const Shape rows = {batch * seq_len, config_.hidden_size};
  scratch.d = arena.Allocate(DType::kFloat32, rows);
  scratch.d_final = arena.Allocate(DType::kFloat32, rows);
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
  EmbeddingForward(Flat(activations->inputs), embedding_->value,
                   activations->embedded, *context.stream);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
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
                                    ModelScratch* scratch,
                                    Stream& stream) const {
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
    blocks_[layer].Backward(context, BlockInput(*activations, layer),
                            activations->blocks[layer], scratch->block, d);
  }
  EmbeddingBackward(Flat(activations->inputs), d, embedding_->gradient, stream);
}

MixerHealth LanguageModel::Health(const Activations& activations,
                                  const ModelScratch& scratch,
                                  Stream& stream) const {
  const LayerContext context = ContextFor(activations, scratch, stream);
  MixerHealth worst;
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const MixerHealth health = blocks_[layer].mixer().Health(
        context, activations.blocks[layer].mixer, scratch.block.mixer);
    worst.min_diagonal =
        layer == 0 ? health.min_diagonal
                   : std::min(worst.min_diagonal, health.min_diagonal);
    worst.max_gain = std::max(worst.max_gain, health.max_gain);
    worst.lambda_max = std::max(worst.lambda_max, health.lambda_max);
  }
  return worst;
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
