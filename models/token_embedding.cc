// SPDX-License-Identifier: Apache-2.0

#include "models/token_embedding.h"

#include "models/initialization.h"
#include "models/rows_over_tp.h"
#include "ops/embedding.h"
#include "runtime/profile_range.h"

namespace cubit {
namespace {

constexpr char kEmbedding[] = "embedding";

}  // namespace

TokenEmbedding::TokenEmbedding(ParameterStore* store, const std::string& name,
                               const ModelConfig& config,
                               const ModelShard& shard)
    : weight_(
          store->Add(name + ".weight",
                     shard.Slice({config.vocab_size, config.hidden_size}, 0),
                     Initializer::Normal(InputStddev(config)), /*decay=*/true)),
      slice_({weight_->shard.begin, config.vocab_size}),
      tp_size_(shard.tp_size) {}

void TokenEmbedding::Forward(const LayerContext& context, ConstTensor ids,
                             Tensor y) const {
  CUBIT_CHECK_EQ(ids.dim(0), tp_size_ * y.dim(0));
  {
    const ProfileRange range(kEmbedding, *context.stream);
    EmbeddingForward(ids, weight_->compute, slice_,
                     PartialRows(context, tp_size_, y), *context.stream);
  }
  if (tp_size_ > 1) {
    SumRows(context, tp_size_, ConstTensor(), ConstTensor(), y);
  }
}

void TokenEmbedding::Backward(const LayerContext& context, ConstTensor ids,
                              ConstTensor d) const {
  const ConstTensor rows = GatherRows(context, tp_size_, d);
  const ProfileRange range(kEmbedding, *context.stream);
  EmbeddingBackward(ids, rows, slice_, weight_->gradient, *context.stream);
}

}  // namespace cubit
