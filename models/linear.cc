// SPDX-License-Identifier: Apache-2.0

#include "models/linear.h"

#include "ops/matmul.h"

namespace cubit {

Linear::Linear(ParameterStore* store, const std::vector<LinearPart>& parts,
               int64_t in_features, bool bias, double stddev)
    : in_features_(in_features) {
  for (const LinearPart& part : parts) {
    weights_.push_back(store->Add(
        part.name + ".weight",
        ShardSpec::Whole({part.out_features, in_features}),
        Initializer::Normal(stddev), /*decay=*/true, !weights_.empty()));
    out_features_ += part.out_features;
  }
  if (!bias) return;
  for (const LinearPart& part : parts) {
    biases_.push_back(store->Add(
        part.name + ".bias", ShardSpec::Whole({part.out_features}),
        Initializer::Constant(0), /*decay=*/false, !biases_.empty()));
  }
}

void Linear::Forward(const LayerContext& context, ConstTensor x,
                     ConstTensor residual, Tensor y) const {
  LinearForward(x, FusedValue(weights_), FusedValue(biases_), residual, y,
                *context.stream);
}

void Linear::ForwardGelu(const LayerContext& context, ConstTensor x, Tensor pre,
                         Tensor y) const {
  LinearGeluForward(x, FusedValue(weights_), FusedValue(biases_), pre, y,
                    *context.stream);
}

void Linear::Backward(const LayerContext& context, ConstTensor d_y,
                      ConstTensor x, Tensor d_x) const {
  LinearBackwardWeight(d_y, x, FusedGradient(weights_), FusedGradient(biases_),
                       *context.stream);
  LinearBackwardInput(d_y, FusedValue(weights_), /*accumulate=*/false, d_x,
                      *context.stream);
}

void Linear::BackwardGelu(const LayerContext& context, ConstTensor d_y,
                          ConstTensor x, ConstTensor pre, Tensor d_pre) const {
  LinearBackwardWeight(d_y, x, FusedGradient(weights_), FusedGradient(biases_),
                       *context.stream);
  LinearGeluBackwardInput(d_y, FusedValue(weights_), pre, d_pre,
                          *context.stream);
}

}  // namespace cubit
