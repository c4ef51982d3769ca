// SPDX-License-Identifier: Apache-2.0
//
// The words of a Hugging Face folder: config.json of a model and the names of
// its tensors. export.h writes them, import.h reads them.

#ifndef CUBIT_LAUNCH_EXPORT_CONFIG_H_
#define CUBIT_LAUNCH_EXPORT_CONFIG_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "data/tokenizer.h"
#include "models/model_config.h"
#include "runtime/dtype.h"

namespace cubit {

// Names of files in the folder.
extern const char kModelingFile[];      // "modeling_cubit.py"
extern const char kWeightsFile[];       // "model.safetensors"
extern const char kWeightsIndexFile[];  // "model.safetensors.index.json"
extern const char kModelConfigFile[];   // "config.json"
extern const char kRunConfigFile[];     // "config.textproto"
extern const char kModelTypeWord[];     // "cubit": model_type in config.json

// Name of a tensor in the folder: "model.layers.0.mixer.q_proj.weight" for
// "layers.0.mixer.q_proj.weight", and transformers' own words for what every
// language model has ("embedding.weight" is "model.embed_tokens.weight").
std::string HuggingFaceName(absl::string_view parameter);

// config.json. `dtype` is that of the weights in the folder.
std::string HuggingFaceConfig(const ModelConfig& config,
                              const Tokenizer& tokenizer, DType dtype);

// Whether a folder with the config.json `text` computes the function of
// `config` over the ids of `tokenizer`. The error (InvalidArgument; without a
// file name) names the first field that differs, with both values, and the key
// of the run's configuration to change.
absl::Status CheckHuggingFaceConfig(absl::string_view text,
                                    const ModelConfig& config,
                                    const Tokenizer& tokenizer);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_EXPORT_CONFIG_H_
