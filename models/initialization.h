// SPDX-License-Identifier: Apache-2.0
//
// Standard deviations of weights at the start: the small initialisation (Nguyen
// and Salazar, arXiv:1910.05895, as in GPT-NeoX), or model.init_std with
// GPT-2's rule for the layers that write to the residual stream.

#ifndef CUBIT_MODELS_INITIALIZATION_H_
#define CUBIT_MODELS_INITIALIZATION_H_

#include <cmath>

#include "models/model_config.h"

namespace cubit {

// sqrt(2 / (5 D)): embeddings and layers that read the residual stream.
inline double InputStddev(const ModelConfig& config) {
  if (config.init_std > 0) return config.init_std;
  return std::sqrt(2.0 / (5.0 * static_cast<double>(config.hidden_size)));
}

// 2 / (L sqrt(D)): layers that write to the residual stream.
inline double OutputStddev(const ModelConfig& config) {
  if (config.init_std > 0) {
    return config.init_std /
           std::sqrt(2.0 * static_cast<double>(config.num_layers));
  }
  return 2.0 / (static_cast<double>(config.num_layers) *
                std::sqrt(static_cast<double>(config.hidden_size)));
}

}  // namespace cubit

#endif  // CUBIT_MODELS_INITIALIZATION_H_
