// SPDX-License-Identifier: Apache-2.0
//
// Parameters and model FLOPs of a model by part, in closed form, so that
// layouts can be weighed without a model. The whole agrees with LanguageModel.

#ifndef CUBIT_LAUNCH_MODEL_COSTS_H_
#define CUBIT_LAUNCH_MODEL_COSTS_H_

#include <cstdint>

#include "absl/status/statusor.h"

#include "models/model_config.h"

namespace cubit {

struct ModelCosts {
  // Elements of one layer's matrices.
  int64_t layer_weights = 0;
  // Parameters of a layer that tp cuts, and those that every tp rank has.
  int64_t layer_split = 0;
  int64_t layer_whole = 0;
  int64_t embedding = 0;  // V D; the head's as well, unless they are tied
  int64_t final_norm = 0;
  int64_t head_weights = 0;  // of the logits that are computed
  bool tied = false;
  int64_t seq_len = 0;
  double mixer_forward_flops = 0;  // of one sequence in one layer

  // Forward FLOPs of one sequence; the backward is twice that.
  double LayerForwardFlops() const {
    return 2.0 * static_cast<double>(layer_weights * seq_len) +
           mixer_forward_flops;
  }
  double HeadForwardFlops() const {
    return 2.0 * static_cast<double>(head_weights * seq_len);
  }
  // Parameters on one of tp_size ranks that holds `num_layers` layers, the
  // embedding and the head or not.
  int64_t NumParameters(int64_t num_layers, int tp_size, bool has_embedding,
                        bool has_head) const;
};

// InvalidArgument: an unknown mixer.
absl::StatusOr<ModelCosts> MakeModelCosts(const ModelConfig& model);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_MODEL_COSTS_H_
