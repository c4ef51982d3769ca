// SPDX-License-Identifier: Apache-2.0

#include "models/mixer_layer.h"

#include "absl/strings/str_cat.h"

#include "models/initialization.h"

namespace cubit {
namespace {

std::vector<LinearPart> InParts(const std::string& name,
                                const ModelConfig& config,
                                const TokenMixer& mixer) {
  std::vector<LinearPart> parts;
  for (const MixerProjection& projection : mixer.projections()) {
    parts.push_back({absl::StrCat(name, ".", projection.name),
                     config.num_heads * projection.width});
  }
  return parts;
}

}  // namespace

MixerLayer::MixerLayer(ParameterStore* store, const std::string& name,
                       const ModelConfig& config, const TokenMixer* mixer)
    : mixer_(mixer),
      num_heads_(config.num_heads),
      head_dim_(config.head_dim()),
      in_(store, InParts(name, config, *mixer), config.hidden_size, config.bias,
          InputStddev(config)),
      out_(store, {{name + ".o_proj", config.hidden_size}},
           config.num_heads * config.head_dim(), config.bias,
           OutputStddev(config)) {
  for (const MixerScalar& scalar : mixer->scalars()) {
    scalars_.push_back(store->Add(absl::StrCat(name, ".", scalar.name),
                                  ShardSpec::Whole({num_heads_}),
                                  Initializer::Constant(scalar.initial),
                                  /*decay=*/false));
  }
}

MixerShape MixerLayer::ShapeOf(int64_t batch, int64_t seq_len) const {
  return {batch, seq_len, num_heads_, head_dim_};
}

MixerContext MixerLayer::ContextFor(const LayerContext& context) const {
  MixerContext mixer_context;
  for (const Parameter* scalar : scalars_) {
    mixer_context.scalars.push_back(scalar->value);
  }
  mixer_context.rotary_table = context.rotary_table;
  mixer_context.mask = context.mask;
  mixer_context.stream = context.stream;
  return mixer_context;
}

Tensor MixerLayer::Rows(const Tensor& tensor) {
  return tensor.Reshape({tensor.dim(0) * tensor.dim(1), tensor.dim(2)});
}

MixerLayerSaved MixerLayer::AllocateSaved(int64_t batch, int64_t seq_len,
                                          Arena& arena) const {
  MixerLayerSaved saved;
  saved.columns =
      arena.Allocate(DType::kFloat32, {batch, seq_len, in_.out_features()});
  saved.out =
      arena.Allocate(DType::kFloat32, {batch, seq_len, num_heads_ * head_dim_});
  saved.mixer = mixer_->AllocateSaved(ShapeOf(batch, seq_len), arena);
  return saved;
}

MixerLayerScratch MixerLayer::AllocateScratch(int64_t batch, int64_t seq_len,
                                              Arena& arena) const {
  MixerLayerScratch scratch;
  scratch.d_columns =
      arena.Allocate(DType::kFloat32, {batch, seq_len, in_.out_features()});
  scratch.d_out =
      arena.Allocate(DType::kFloat32, {batch, seq_len, num_heads_ * head_dim_});
  scratch.health = arena.Allocate(DType::kFloat32, {3});
  scratch.mixer = mixer_->AllocateScratch(ShapeOf(batch, seq_len), arena);
  return scratch;
}

void MixerLayer::Forward(const LayerContext& context, ConstTensor x,
                         MixerLayerSaved* saved, Tensor y) const {
  in_.Forward(context, x, Rows(saved->columns));
  mixer_->Forward(ContextFor(context), saved->columns, saved->mixer.get(),
                  saved->out);
  out_.Forward(context, Rows(saved->out), y);
}

void MixerLayer::Backward(const LayerContext& context, ConstTensor d_y,
                          ConstTensor x, const MixerLayerSaved& saved,
                          const MixerLayerScratch& scratch, Tensor d_x) const {
  std::vector<Tensor> d_scalars;
  for (const Parameter* scalar : scalars_) {
    d_scalars.push_back(scalar->gradient);
  }
  out_.Backward(context, d_y, Rows(saved.out), Rows(scratch.d_out));
  mixer_->Backward(ContextFor(context), saved.columns, *saved.mixer, saved.out,
                   scratch.d_out, scratch.mixer.get(), scratch.d_columns,
                   d_scalars);
  in_.Backward(context, Rows(scratch.d_columns), x, d_x);
}

MixerHealth MixerLayer::Health(const LayerContext& context,
                               const MixerLayerSaved& saved,
                               const MixerLayerScratch& scratch) const {
  return mixer_->Health(ContextFor(context), saved.columns, *saved.mixer,
                        scratch.health);
}

MixerLayerCache MixerLayer::AllocateCache(int64_t seq_len, Arena& arena) const {
  return {mixer_->AllocateCache(ShapeOf(1, seq_len), arena)};
}

void MixerLayer::FillCache(const LayerContext& context,
                           const MixerLayerSaved& saved,
                           MixerLayerCache* cache) const {
  mixer_->FillCache(saved.columns, *saved.mixer, cache->mixer.get(),
                    *context.stream);
}

void MixerLayer::Decode(const LayerContext& context,
                        absl::Span<const DecodeRow> rows, ConstTensor x,
                        MixerLayerSaved* saved, Tensor y) const {
  const MixerContext mixer_context = ContextFor(context);
  in_.Forward(context, x, Rows(saved->columns));
  for (const DecodeRow& text : rows) {
    mixer_->Decode(mixer_context, text.position,
                   saved->columns.Slice(text.row, 1), text.cache->mixer.get(),
                   saved->out.Slice(text.row, 1));
  }
  out_.Forward(context, Rows(saved->out), y);
}

}  // namespace cubit
