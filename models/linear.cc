// SPDX-License-Identifier: Apache-2.0

#include "models/linear.h"

#include "ops/matmul.h"
#include "runtime/profile_range.h"

namespace cubit {
namespace {

constexpr char kLinear[] = "linear";

}  // namespace

Linear::Linear(ParameterStore* store, const std::vector<LinearPart>& parts,
               int64_t in_features, bool bias, double stddev,
               int64_t column_multiple)
    : in_features_(in_features) {
  for (const LinearPart& part : parts) {
    weights_.push_back(store->Add(
        part.name + ".weight",
        ShardSpec::Whole({part.out_features, in_features}),
        Initializer::Normal(stddev), /*decay=*/true, !weights_.empty()));
    out_features_ += part.out_features;
  }
  const int64_t padding =
      (column_multiple - out_features_ % column_multiple) % column_multiple;
  out_features_ += padding;
  store->Pad(padding * in_features);
  if (!bias) return;
  for (const LinearPart& part : parts) {
    biases_.push_back(store->Add(
        part.name + ".bias", ShardSpec::Whole({part.out_features}),
        Initializer::Constant(0), /*decay=*/false, !biases_.empty()));
  }
  store->Pad(padding);
}

Tensor Linear::WithPadding(const Tensor& fused) const {
  if (fused.empty()) return fused;
  return Tensor(fused.raw(), fused.dtype(),
                fused.shape().rank() == 1
                    ? Shape({out_features_})
                    : Shape({out_features_, in_features_}));
}

void Linear::Forward(const LayerContext& context, ConstTensor x,
                     ConstTensor residual, Tensor y) const {
  const ProfileRange range(kLinear, *context.stream);
  LinearForward(x, WithPadding(FusedCompute(weights_)),
                WithPadding(FusedCompute(biases_)), residual, y,
                *context.stream);
}

void Linear::ForwardGelu(const LayerContext& context, ConstTensor x, Tensor pre,
                         Tensor y) const {
  const ProfileRange range(kLinear, *context.stream);
  LinearGeluForward(x, WithPadding(FusedCompute(weights_)),
                    WithPadding(FusedCompute(biases_)), pre, y,
                    *context.stream);
}

void Linear::Backward(const LayerContext& context, ConstTensor d_y,
                      ConstTensor x, Tensor d_x) const {
  const ProfileRange range(kLinear, *context.stream);
  LinearBackwardWeight(d_y, x, WithPadding(FusedGradient(weights_)),
                       WithPadding(FusedGradient(biases_)), *context.stream);
  LinearBackwardInput(d_y, WithPadding(FusedCompute(weights_)),
                      /*accumulate=*/false, d_x, *context.stream);
}

void Linear::BackwardGelu(const LayerContext& context, ConstTensor d_y,
                          ConstTensor x, ConstTensor pre, Tensor d_pre) const {
  const ProfileRange range(kLinear, *context.stream);
  LinearBackwardWeight(d_y, x, WithPadding(FusedGradient(weights_)),
                       WithPadding(FusedGradient(biases_)), *context.stream);
  LinearGeluBackwardInput(d_y, WithPadding(FusedCompute(weights_)), pre, d_pre,
                          *context.stream);
}

}  // namespace cubit
