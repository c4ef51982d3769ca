// SPDX-License-Identifier: Apache-2.0
//
// The mixers that exist, by the word that configurations use.

#ifndef CUBIT_MODELS_MIXERS_REGISTRY_H_
#define CUBIT_MODELS_MIXERS_REGISTRY_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "models/mixers/token_mixer.h"
#include "models/model_config.h"

namespace cubit {

// The mixer that `config` asks for; an unknown word lists those that exist.
absl::StatusOr<std::unique_ptr<TokenMixer>> MakeMixer(
    const ModelConfig& config);

// "cubit", "deltaformer", "softmax".
std::vector<std::string> MixerNames();

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXERS_REGISTRY_H_
