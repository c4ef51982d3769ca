// SPDX-License-Identifier: Apache-2.0
//
// From the words of a configuration to a model.

#ifndef CUBIT_LAUNCH_MODEL_SETUP_H_
#define CUBIT_LAUNCH_MODEL_SETUP_H_

#include <cstdint>

#include "absl/status/statusor.h"

#include "launch/run.pb.h"
#include "models/model_config.h"

namespace cubit {

// The model of `config` for a tokenizer of `vocab_size` ids. Fills what the
// configuration leaves to be derived (ffn_hidden_size, vocab_size); an error if
// model.vocab_size is smaller than the tokenizer's.
absl::StatusOr<ModelConfig> MakeModelConfig(const RunConfig& config,
                                            int64_t vocab_size);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_MODEL_SETUP_H_
