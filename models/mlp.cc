// SPDX-License-Identifier: Apache-2.0

#include "models/mlp.h"

#include "models/initialization.h"
#include "ops/activations.h"

namespace cubit {
namespace {

std::vector<LinearPart> UpParts(const std::string& name,
                                const ModelConfig& config) {
  const int64_t width = config.ffn_hidden_size;
  if (config.mlp == MlpKind::kGelu) return {{name + ".up_proj", width}};
  return {{name + ".gate_proj", width}, {name + ".up_proj", width}};
}

}  // namespace

Mlp::Mlp(ParameterStore* store, const std::string& name,
         const ModelConfig& config)
    : kind_(config.mlp),
      up_(store, UpParts(name, config), config.hidden_size, config.bias,
          InputStddev(config)),
      down_(store, {{name + ".down_proj", config.hidden_size}},
            config.ffn_hidden_size, config.bias, OutputStddev(config)) {}

MlpSaved Mlp::AllocateSaved(int64_t rows, Arena& arena) const {
  MlpSaved saved;
  saved.pre = arena.Allocate(DType::kFloat32, {rows, up_.out_features()});
  saved.activation =
      arena.Allocate(DType::kFloat32, {rows, down_.in_features()});
  return saved;
}

MlpScratch Mlp::AllocateScratch(int64_t rows, Arena& arena) const {
  MlpScratch scratch;
  if (kind_ == MlpKind::kSwiGlu) {
    scratch.d_activation =
        arena.Allocate(DType::kFloat32, {rows, down_.in_features()});
  }
  scratch.d_pre = arena.Allocate(DType::kFloat32, {rows, up_.out_features()});
  return scratch;
}

void Mlp::Forward(const LayerContext& context, ConstTensor x,
                  ConstTensor residual, MlpSaved* saved, Tensor y) const {
  if (kind_ == MlpKind::kGelu) {
    up_.ForwardGelu(context, x, saved->pre, saved->activation);
  } else {
    up_.Forward(context, x, ConstTensor(), saved->pre);
    SwiGluForward(saved->pre, saved->activation, *context.stream);
  }
  down_.Forward(context, saved->activation, residual, y);
}

void Mlp::Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                   const MlpSaved& saved, const MlpScratch& scratch,
                   Tensor d_x) const {
  if (kind_ == MlpKind::kGelu) {
    down_.BackwardGelu(context, d_y, saved.activation, saved.pre,
                       scratch.d_pre);
  } else {
    down_.Backward(context, d_y, saved.activation, scratch.d_activation);
    SwiGluBackward(scratch.d_activation, saved.pre, scratch.d_pre,
                   *context.stream);
  }
  up_.Backward(context, scratch.d_pre, x, d_x);
}

}  // namespace cubit
