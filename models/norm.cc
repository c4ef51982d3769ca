// SPDX-License-Identifier: Apache-2.0

#include "models/norm.h"

#include "ops/layer_norm.h"
#include "ops/rms_norm.h"
#include "runtime/profile_range.h"

namespace cubit {

Norm::Norm(ParameterStore* store, const std::string& name,
           const ModelConfig& config, const ModelShard& shard)
    : kind_(config.norm),
      epsilon_(static_cast<float>(config.norm_epsilon)),
      hidden_size_(config.hidden_size),
      dtype_(config.activation_dtype) {
  const ShardSpec whole = ShardSpec::Whole({hidden_size_});
  weight_ = store->Add(name + ".weight", whole, Initializer::Constant(1),
                       /*decay=*/false);
  weight_->sum_over_tp = shard.tp_size > 1;
  if (kind_ == NormKind::kLayerNorm && config.bias) {
    bias_ = store->Add(name + ".bias", whole, Initializer::Constant(0),
                       /*decay=*/false);
    bias_->sum_over_tp = shard.tp_size > 1;
  }
}

NormSaved Norm::AllocateSaved(int64_t rows, Arena& arena,
                              const Tensor* shared_y) const {
  NormSaved saved;
  saved.y = shared_y != nullptr ? *shared_y
                                : arena.Allocate(dtype_, {rows, hidden_size_});
  if (kind_ == NormKind::kLayerNorm) {
    saved.mean = arena.Allocate(DType::kFloat32, {rows});
  }
  saved.rstd = arena.Allocate(DType::kFloat32, {rows});
  return saved;
}

void Norm::Forward(const LayerContext& context, ConstTensor x,
                   NormSaved* saved) const {
  const ProfileRange range("norm", *context.stream);
  if (kind_ == NormKind::kRmsNorm) {
    RmsNormForward(x, weight_->value, epsilon_, saved->y, saved->rstd,
                   *context.stream);
    return;
  }
  LayerNormForward(x, weight_->value,
                   bias_ == nullptr ? Tensor() : bias_->value, epsilon_,
                   saved->y, saved->mean, saved->rstd, *context.stream);
}

void Norm::Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                    const NormSaved& saved, Tensor d_x, Tensor d_x_sums) const {
  const ProfileRange range("norm", *context.stream);
  if (kind_ == NormKind::kRmsNorm) {
    RmsNormBackward(d_y, x, weight_->value, saved.rstd, d_x, weight_->gradient,
                    d_x_sums, *context.stream);
    return;
  }
  LayerNormBackward(
      d_y, x, weight_->value, saved.mean, saved.rstd, d_x, weight_->gradient,
      bias_ == nullptr ? Tensor() : bias_->gradient, d_x_sums, *context.stream);
}

}  // namespace cubit
