// SPDX-License-Identifier: Apache-2.0
//
// LayerNorm or RMSNorm before a branch of a block.

#ifndef CUBIT_MODELS_NORM_H_
#define CUBIT_MODELS_NORM_H_

#include <string>

#include "models/layer_context.h"
#include "models/model_config.h"
#include "models/model_shard.h"
#include "parallel/parameter.h"
#include "runtime/memory.h"

namespace cubit {

struct NormSaved {
  Tensor y;     // [N, D]
  Tensor mean;  // [N]; absent for RMSNorm
  Tensor rstd;  // [N]
};

class Norm {
 public:
  // Every tp rank holds the whole parameters and sees its own rows.
  Norm(ParameterStore* store, const std::string& name,
       const ModelConfig& config, const ModelShard& shard);

  // With `shared_y`, y is that tensor.
  NormSaved AllocateSaved(int64_t rows, Arena& arena,
                          const Tensor* shared_y = nullptr) const;
  // x [N, D] to saved->y.
  void Forward(const LayerContext& context, ConstTensor x,
               NormSaved* saved) const;
  // Adds the gradient to d_x, and the column sums of d_x as it then is to
  // d_x_sums, [D] fp32 or absent.
  void Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                const NormSaved& saved, Tensor d_x, Tensor d_x_sums) const;

 private:
  NormKind kind_;
  float epsilon_;
  int64_t hidden_size_;
  DType dtype_;  // of x and y
  Parameter* weight_;
  Parameter* bias_ = nullptr;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_NORM_H_
