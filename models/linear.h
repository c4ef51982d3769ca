// SPDX-License-Identifier: Apache-2.0
//
// y = x W^T + b. Several projections of one input are one product: their
// weights lie one behind the other. A tp rank holds a part of every weight
// (Megatron's tensor and sequence parallelism, Korthikanti et al.,
// arXiv:2205.05198); rows_over_tp.h moves the rows.

#ifndef CUBIT_MODELS_LINEAR_H_
#define CUBIT_MODELS_LINEAR_H_

#include <cstdint>
#include <string>
#include <vector>

#include "models/layer_context.h"
#include "models/model_shard.h"
#include "parallel/parameter.h"

namespace cubit {

// One part of a fused linear layer: its own parameter names, its own rows.
struct LinearPart {
  std::string name;  // "layers.0.mixer.q_proj": ".weight" and ".bias" follow
  int64_t out_features = 0;
};

// How the tp ranks share a layer.
enum class LinearSplit {
  // Columns of the result: x [Nl, in] of every rank is gathered, y [N, out] has
  // this rank's columns of each part. The gradient of x is summed over ranks.
  kColumns,
  // Columns of x, [N, in]: what the ranks add to each row is summed, y [Nl,
  // out]. The bias is whole on every rank and added once.
  kRows
};

class Linear {
 public:
  // Declares the parameters of all parts in `store`; weights start normal with
  // `stddev`, biases (if any) at zero and without decay. Extents are those of
  // the whole layer.
  // The result has as many columns as all parts, up to a multiple of
  // `column_multiple`; those beyond are zero, and so must their gradients be.
  Linear(ParameterStore* store, const std::vector<LinearPart>& parts,
         int64_t in_features, bool bias, double stddev, const ModelShard& shard,
         LinearSplit split, int64_t column_multiple = 1);

  // Columns of x and of the result on this rank, the latter with padding.
  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }

  // In what follows x and d_x have Nl rows under kColumns and N under kRows,
  // y, d_y and residual N under kColumns and Nl under kRows.

  // y = x W^T + b + residual: x [., in]; residual [., out] or absent, and only
  // under kRows; y [., out], may be residual.
  void Forward(const LayerContext& context, ConstTensor x, ConstTensor residual,
               Tensor y) const;
  // pre = x W^T + b, y = GELU(pre). kColumns only (CHECK).
  void ForwardGelu(const LayerContext& context, ConstTensor x, Tensor pre,
                   Tensor y) const;
  // d_x [., in] is written; parameter gradients are accumulated, but the
  // weights' written by the first backward (LayerContext). kColumns only
  // (CHECK).
  void Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                Tensor d_x) const;
  // Likewise, but the gradient of the biases is left to whoever makes d_y, who
  // can sum its columns in the same pass: to BiasGradient. Under kRows d_x may
  // not be d_y.
  void BackwardWithoutBias(const LayerContext& context, ConstTensor d_y,
                           ConstTensor x, Tensor d_x) const;
  // BackwardWithoutBias of a layer whose input x was GELU(pre), pre the result
  // of `before`: d_pre [N, in] is written, and the gradient of `before`'s
  // biases is accumulated by the pass that makes d_pre. kRows behind kColumns
  // only (CHECK).
  void BackwardGelu(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                    ConstTensor pre, const Linear& before, Tensor d_pre) const;
  // [out] fp32, with padding; absent without biases. The column sums of d_y are
  // added to it: under kRows those of this rank's rows, which the sum over tp
  // (Parameter) makes those of all.
  Tensor BiasGradient() const;

 private:
  void DeclareWeights(ParameterStore* store,
                      const std::vector<LinearPart>& parts, double stddev,
                      const ModelShard& shard, int64_t padding);
  void DeclareBiases(ParameterStore* store,
                     const std::vector<LinearPart>& parts,
                     const ModelShard& shard, int64_t padding);
  // `fused` parameters with their padding, [out] or [out, in]; absent stays so.
  Tensor WithPadding(const Tensor& fused) const;
  Tensor Weight() const { return WithPadding(FusedCompute(weights_)); }
  Tensor Bias() const { return WithPadding(FusedCompute(biases_)); }
  // Of the weights, and of the biases into `d_bias` unless that is absent.
  void AccumulateGradients(const LayerContext& context, ConstTensor d_y,
                           ConstTensor x, Tensor d_bias) const;
  void Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                Tensor d_bias, Tensor d_x) const;

  LinearSplit split_;
  int tp_size_;
  std::vector<Parameter*> weights_;
  std::vector<Parameter*> biases_;
  int64_t in_features_;
  int64_t out_features_ = 0;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_LINEAR_H_
