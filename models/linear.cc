// SPDX-License-Identifier: Apache-2.0

#include "models/linear.h"

#include "models/rows_over_tp.h"
#include "ops/matmul.h"
#include "runtime/profile_range.h"

namespace cubit {
namespace {

constexpr char kLinear[] = "linear";

}  // namespace

Linear::Linear(ParameterStore* store, const std::vector<LinearPart>& parts,
               int64_t in_features, bool bias, double stddev,
               const ModelShard& shard, LinearSplit split,
               int64_t column_multiple)
    : split_(split), tp_size_(shard.tp_size), in_features_(in_features) {
  for (const LinearPart& part : parts) {
    out_features_ += split == LinearSplit::kColumns
                         ? shard.Local(part.out_features)
                         : part.out_features;
  }
  const int64_t padding =
      (column_multiple - out_features_ % column_multiple) % column_multiple;
  out_features_ += padding;
  DeclareWeights(store, parts, stddev, shard, padding);
  if (bias) DeclareBiases(store, parts, shard, padding);
}

void Linear::DeclareWeights(ParameterStore* store,
                            const std::vector<LinearPart>& parts, double stddev,
                            const ModelShard& shard, int64_t padding) {
  const int dim = split_ == LinearSplit::kColumns ? 0 : 1;
  for (const LinearPart& part : parts) {
    weights_.push_back(
        store->Add(part.name + ".weight",
                   shard.Slice({part.out_features, in_features_}, dim),
                   Initializer::Normal(stddev), /*decay=*/true,
                   /*follow=*/!weights_.empty()));
    weights_.back()->gradient_is_written = true;
  }
  if (split_ == LinearSplit::kRows) in_features_ = shard.Local(in_features_);
  store->Pad(padding * in_features_);
}

void Linear::DeclareBiases(ParameterStore* store,
                           const std::vector<LinearPart>& parts,
                           const ModelShard& shard, int64_t padding) {
  const bool whole = split_ == LinearSplit::kRows;
  for (const LinearPart& part : parts) {
    const Shape shape = {part.out_features};
    biases_.push_back(
        store->Add(part.name + ".bias",
                   whole ? ShardSpec::Whole(shape) : shard.Slice(shape, 0),
                   Initializer::Constant(0), /*decay=*/false,
                   /*follow=*/!biases_.empty()));
    biases_.back()->sum_over_tp = whole && tp_size_ > 1;
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
  if (split_ == LinearSplit::kColumns) {
    CUBIT_CHECK(residual.empty());
    const ConstTensor rows = GatherRows(context, tp_size_, x);
    const ProfileRange range(kLinear, *context.stream);
    LinearForward(rows, Weight(), Bias(), ConstTensor(), y, *context.stream);
    return;
  }
  const bool whole = tp_size_ == 1;
  const Tensor sum = PartialRows(context, tp_size_, y);
  {
    const ProfileRange range(kLinear, *context.stream);
    LinearForward(x, Weight(), whole ? Bias() : Tensor(),
                  whole ? residual : ConstTensor(), sum, *context.stream);
  }
  if (!whole) SumRows(context, tp_size_, Bias(), residual, y);
}

void Linear::ForwardGelu(const LayerContext& context, ConstTensor x, Tensor pre,
                         Tensor y) const {
  CUBIT_CHECK(split_ == LinearSplit::kColumns);
  const ConstTensor rows = GatherRows(context, tp_size_, x);
  const ProfileRange range(kLinear, *context.stream);
  LinearGeluForward(rows, Weight(), Bias(), pre, y, *context.stream);
}

Tensor Linear::BiasGradient() const {
  return WithPadding(FusedGradient(biases_));
}

void Linear::AccumulateGradients(const LayerContext& context, ConstTensor d_y,
                                 ConstTensor x, Tensor d_bias) const {
  const ProfileRange range(kLinear, *context.stream);
  LinearBackwardWeight(d_y, x, /*accumulate=*/!context.first_backward,
                       WithPadding(FusedGradient(weights_)), d_bias,
                       *context.stream);
}

void Linear::Backward(const LayerContext& context, ConstTensor d_y,
                      ConstTensor x, Tensor d_x) const {
  CUBIT_CHECK(split_ == LinearSplit::kColumns);
  Backward(context, d_y, x, BiasGradient(), d_x);
}

void Linear::BackwardWithoutBias(const LayerContext& context, ConstTensor d_y,
                                 ConstTensor x, Tensor d_x) const {
  Backward(context, d_y, x, Tensor(), d_x);
}

void Linear::Backward(const LayerContext& context, ConstTensor d_y,
                      ConstTensor x, Tensor d_bias, Tensor d_x) const {
  const bool columns = split_ == LinearSplit::kColumns;
  const ConstTensor d_rows = columns ? d_y : GatherRows(context, tp_size_, d_y);
  AccumulateGradients(context, d_rows,
                      columns ? GatherRows(context, tp_size_, x) : x, d_bias);
  const Tensor sum = columns ? PartialRows(context, tp_size_, d_x) : d_x;
  {
    const ProfileRange range(kLinear, *context.stream);
    LinearBackwardInput(d_rows, Weight(), /*accumulate=*/false, sum,
                        *context.stream);
  }
  if (columns && tp_size_ > 1) {
    SumRows(context, tp_size_, ConstTensor(), ConstTensor(), d_x);
  }
}

void Linear::BackwardGelu(const LayerContext& context, ConstTensor d_y,
                          ConstTensor x, ConstTensor pre, const Linear& before,
                          Tensor d_pre) const {
  CUBIT_CHECK(split_ == LinearSplit::kRows);
  CUBIT_CHECK(before.split_ == LinearSplit::kColumns);
  const ConstTensor d_rows = GatherRows(context, tp_size_, d_y);
  AccumulateGradients(context, d_rows, x, /*d_bias=*/Tensor());
  const ProfileRange range(kLinear, *context.stream);
  LinearGeluBackwardInput(d_rows, Weight(), pre, d_pre, before.BiasGradient(),
                          *context.stream);
}

}  // namespace cubit
