// SPDX-License-Identifier: Apache-2.0
//
// The feed-forward branch: GELU or SwiGLU between two linear layers, of which a
// tp rank holds F / tp_size columns.

#ifndef CUBIT_MODELS_MLP_H_
#define CUBIT_MODELS_MLP_H_

#include <string>

#include "models/layer_context.h"
#include "models/linear.h"
#include "models/model_config.h"
#include "models/model_shard.h"
#include "runtime/memory.h"

namespace cubit {

struct MlpSaved {
  Tensor pre;         // [N, F / tp], or twice that (gate, up) for SwiGLU
  Tensor activation;  // [N, F / tp]
};

struct MlpScratch {
  Tensor d_activation;  // [N, F / tp]; absent for GELU, which goes to d_pre
  Tensor d_pre;         // [N, F / tp], or twice that for SwiGLU
};

class Mlp {
 public:
  Mlp(ParameterStore* store, const std::string& name, const ModelConfig& config,
      const ModelShard& shard);

  // `rows` is N. With `shared_activation`, the activation is that tensor.
  MlpSaved AllocateSaved(int64_t rows, Arena& arena,
                         const Tensor* shared_activation = nullptr) const;
  MlpScratch AllocateScratch(int64_t rows, Arena& arena) const;
  // y = residual + the branch; x, residual, y [Nl, D].
  void Forward(const LayerContext& context, ConstTensor x, ConstTensor residual,
               MlpSaved* saved, Tensor y) const;
  // What the backward needs besides saved->pre: made anew, from it or from x.
  void RecomputeActivation(const LayerContext& context, MlpSaved* saved) const;
  void Recompute(const LayerContext& context, ConstTensor x,
                 MlpSaved* saved) const;
  // d_x [Nl, D] is written. The sums of d_y's columns are left to whoever makes
  // it (Linear::BiasGradient): to OutBiasGradient, [D] or absent.
  void Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                const MlpSaved& saved, const MlpScratch& scratch,
                Tensor d_x) const;
  Tensor OutBiasGradient() const { return down_.BiasGradient(); }

 private:
  MlpKind kind_;
  DType dtype_;
  Linear up_;
  Linear down_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MLP_H_
