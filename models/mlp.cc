// SPDX-License-Identifier: Apache-2.0

#include "models/mlp.h"

#include "models/initialization.h"
#include "ops/activations.h"
#include "runtime/profile_range.h"

namespace cubit {
namespace {

constexpr char kActivation[] = "activation";

std::vector<LinearPart> UpParts(const std::string& name,
                                const ModelConfig& config) {
  const int64_t width = config.ffn_hidden_size;
  if (config.mlp == MlpKind::kGelu) return {{name + ".up_proj", width}};
  return {{name + ".gate_proj", width}, {name + ".up_proj", width}};
}

}  // namespace

Mlp::Mlp(ParameterStore* store, const std::string& name,
         const ModelConfig& config, const ModelShard& shard)
    : kind_(config.mlp),
      dtype_(config.activation_dtype),
      up_(store, UpParts(name, config), config.hidden_size, config.bias,
          InputStddev(config), shard, LinearSplit::kColumns),
      down_(store, {{name + ".down_proj", config.hidden_size}},
            config.ffn_hidden_size, config.bias, OutputStddev(config), shard,
            LinearSplit::kRows) {}

MlpSaved Mlp::AllocateSaved(int64_t rows, Arena& arena,
                            const Tensor* shared_activation) const {
  MlpSaved saved;
  saved.pre = arena.Allocate(dtype_, {rows, up_.out_features()});
  saved.activation = shared_activation != nullptr
                         ? *shared_activation
                         : arena.Allocate(dtype_, {rows, down_.in_features()});
  return saved;
}

MlpScratch Mlp::AllocateScratch(int64_t rows, Arena& arena) const {
  MlpScratch scratch;
  if (kind_ == MlpKind::kSwiGlu) {
    scratch.d_activation = arena.Allocate(dtype_, {rows, down_.in_features()});
  }
  scratch.d_pre = arena.Allocate(dtype_, {rows, up_.out_features()});
  return scratch;
}

void Mlp::Forward(const LayerContext& context, ConstTensor x,
                  ConstTensor residual, MlpSaved* saved, Tensor y) const {
  Recompute(context, x, saved);
  down_.Forward(context, saved->activation, residual, y);
}

void Mlp::Recompute(const LayerContext& context, ConstTensor x,
                    MlpSaved* saved) const {
  if (kind_ == MlpKind::kGelu) {
    up_.ForwardGelu(context, x, saved->pre, saved->activation);
    return;
  }
  up_.Forward(context, x, ConstTensor(), saved->pre);
  RecomputeActivation(context, saved);
}

void Mlp::RecomputeActivation(const LayerContext& context,
                              MlpSaved* saved) const {
  const ProfileRange range(kActivation, *context.stream);
  if (kind_ == MlpKind::kGelu) {
    GeluForward(saved->pre, saved->activation, *context.stream);
  } else {
    SwiGluForward(saved->pre, saved->activation, *context.stream);
  }
}

void Mlp::Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                   const MlpSaved& saved, const MlpScratch& scratch,
                   Tensor d_x) const {
  if (kind_ == MlpKind::kGelu) {
    down_.BackwardGelu(context, d_y, saved.activation, saved.pre, up_,
                       scratch.d_pre);
    up_.BackwardWithoutBias(context, scratch.d_pre, x, d_x);
    return;
  }
  down_.BackwardWithoutBias(context, d_y, saved.activation,
                            scratch.d_activation);
  {
    const ProfileRange range(kActivation, *context.stream);
    SwiGluBackward(scratch.d_activation, saved.pre, scratch.d_pre,
                   *context.stream);
  }
  up_.Backward(context, scratch.d_pre, x, d_x);
}

}  // namespace cubit
