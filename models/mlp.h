// SPDX-License-Identifier: Apache-2.0
//
// The feed-forward branch: GELU or SwiGLU between two linear layers.

#ifndef CUBIT_MODELS_MLP_H_
#define CUBIT_MODELS_MLP_H_

#include <string>

#include "models/layer_context.h"
#include "models/linear.h"
#include "models/model_config.h"
#include "runtime/memory.h"

namespace cubit {

struct MlpSaved {
  Tensor pre;         // [N, F], or [N, 2F] (gate, up) for SwiGLU
  Tensor activation;  // [N, F]
};

struct MlpScratch {
  Tensor d_activation;  // [N, F]; absent for GELU, fused into the product
  Tensor d_pre;         // [N, F], or [N, 2F] for SwiGLU
};

class Mlp {
 public:
  Mlp(ParameterStore* store, const std::string& name,
      const ModelConfig& config);

  MlpSaved AllocateSaved(int64_t rows, Arena& arena) const;
  MlpScratch AllocateScratch(int64_t rows, Arena& arena) const;
  // y = residual + the branch; x, residual, y [N, D].
  void Forward(const LayerContext& context, ConstTensor x, ConstTensor residual,
               MlpSaved* saved, Tensor y) const;
  // d_x [N, D] is written.
  void Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                const MlpSaved& saved, const MlpScratch& scratch,
                Tensor d_x) const;

 private:
  MlpKind kind_;
  Linear up_;
  Linear down_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MLP_H_
