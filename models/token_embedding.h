// SPDX-License-Identifier: Apache-2.0
//
// The first layer: rows of a table by token. A tp rank holds the rows of a run
// of the vocabulary.

#ifndef CUBIT_MODELS_TOKEN_EMBEDDING_H_
#define CUBIT_MODELS_TOKEN_EMBEDDING_H_

#include <cstdint>
#include <string>

#include "models/layer_context.h"
#include "models/model_config.h"
#include "models/model_shard.h"
#include "ops/vocabulary_slice.h"
#include "parallel/parameter.h"

namespace cubit {

class TokenEmbedding {
 public:
  // Declares NAME.weight [V, D]. CHECK: tp divides V.
  TokenEmbedding(ParameterStore* store, const std::string& name,
                 const ModelConfig& config, const ModelShard& shard);

  // y [Nl, D] = rows of the table for this rank's run of `ids` [N] int32.
  void Forward(const LayerContext& context, ConstTensor ids, Tensor y) const;
  // Adds the rows of d [Nl, D] to the table's gradient.
  void Backward(const LayerContext& context, ConstTensor ids,
                ConstTensor d) const;

  Parameter& weight() const { return *weight_; }

 private:
  Parameter* weight_;  // [V / tp, D] of [V, D]
  VocabularySlice slice_;
  int tp_size_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_TOKEN_EMBEDDING_H_
