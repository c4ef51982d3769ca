// SPDX-License-Identifier: Apache-2.0
//
// y = x W^T + b. Several projections of one input are one product: their
// weights lie one behind the other.

#ifndef CUBIT_MODELS_LINEAR_H_
#define CUBIT_MODELS_LINEAR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "models/layer_context.h"
#include "parallel/parameter.h"

namespace cubit {

// One part of a fused linear layer: its own parameter names, its own rows.
struct LinearPart {
  std::string name;  // "layers.0.mixer.q_proj": ".weight" and ".bias" follow
  int64_t out_features = 0;
};

class Linear {
 public:
  // Declares the parameters of all parts in `store`; weights start normal with
  // `stddev`, biases (if any) at zero and without decay.
  Linear(ParameterStore* store, const std::vector<LinearPart>& parts,
         int64_t in_features, bool bias, double stddev);

  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }

  // y = x W^T + b + residual: x [N, in]; residual [N, out] or absent; y
  // [N, out], may be residual.
  void Forward(const LayerContext& context, ConstTensor x, ConstTensor residual,
               Tensor y) const;
  // pre = x W^T + b, y = GELU(pre).
  void ForwardGelu(const LayerContext& context, ConstTensor x, Tensor pre,
                   Tensor y) const;
  // d_x [N, in] is written; parameter gradients are accumulated.
  void Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                Tensor d_x) const;
  // Of a layer whose input x was GELU(pre): d_pre [N, in] is written.
  void BackwardGelu(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                    ConstTensor pre, Tensor d_pre) const;

 private:
  std::vector<Parameter*> weights_;
  std::vector<Parameter*> biases_;
  int64_t in_features_;
  int64_t out_features_ = 0;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_LINEAR_H_
