// SPDX-License-Identifier: Apache-2.0

#include "launch/model_costs.h"

#include <algorithm>
#include <memory>

#include "models/mixers/registry.h"
#include "models/mixers/token_mixer.h"
#include "runtime/status_macros.h"

namespace cubit {

int64_t ModelCosts::NumParameters(int64_t num_layers, int tp_size,
                                  bool has_embedding, bool has_head) const {
  int64_t count = num_layers * (layer_split / tp_size + layer_whole);
  if (has_embedding) count += embedding / tp_size;
  if (has_head) {
    count += final_norm;
    if (!tied || !has_embedding) count += embedding / tp_size;
  }
  return count;
}

absl::StatusOr<ModelCosts> MakeModelCosts(const ModelConfig& model) {
  CUBIT_ASSIGN_OR_RETURN(const std::unique_ptr<TokenMixer> mixer,
                         MakeMixer(model));
  const int64_t hidden = model.hidden_size;
  const int64_t ffn = model.ffn_hidden_size;
  const auto num_scalars = static_cast<int64_t>(mixer->scalars().size());
  int64_t columns = 0;
  for (const MixerProjection& projection : mixer->projections()) {
    columns += projection.width * model.num_heads;
  }
  const int64_t up = model.mlp == MlpKind::kSwiGlu ? 2 * ffn : ffn;
  const bool norm_bias = model.norm == NormKind::kLayerNorm && model.bias;
  const int64_t norm = norm_bias ? 2 * hidden : hidden;
  ModelCosts costs;
  costs.layer_weights = hidden * (columns + hidden + up + ffn);
  costs.layer_split = costs.layer_weights + num_scalars * model.num_heads;
  costs.layer_whole = 2 * norm;
  if (model.bias) {
    costs.layer_split += columns + up;
    costs.layer_whole += 2 * hidden;
  }
  costs.embedding = model.vocab_size * hidden;
  costs.final_norm = norm;
  // The head leaves out the logits of padding beyond a multiple of 64.
  costs.head_weights =
      std::min(model.vocab_size, (model.valid_vocab + 63) / 64 * 64) * hidden;
  costs.tied = model.tied_embeddings;
  costs.seq_len = model.seq_len;
  MixerShape shape;
  shape.batch = 1;
  shape.seq_len = model.seq_len;
  shape.num_heads = model.num_heads;
  shape.head_dim = model.head_dim();
  costs.mixer_forward_flops = mixer->ForwardFlops(shape);
  return costs;
}

}  // namespace cubit
