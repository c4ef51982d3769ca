// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/registry.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "models/mixers/cubit/cubit_mixer.h"
#include "models/mixers/deltaformer/deltaformer_mixer.h"
#include "models/mixers/softmax/softmax_mixer.h"

namespace cubit {
namespace {

using Factory = std::unique_ptr<TokenMixer> (*)(const ModelConfig&);

const std::map<std::string, Factory>& Factories() {
  static const auto* const factories = new std::map<std::string, Factory>{
      {"cubit",
       [](const ModelConfig& c) -> std::unique_ptr<TokenMixer> {
         return std::make_unique<CubitMixer>(c.cubit, c.krr_precision,
                                             c.head_dim());
       }},
      {"softmax",
       [](const ModelConfig& c) -> std::unique_ptr<TokenMixer> {
         return std::make_unique<SoftmaxMixer>(c.softmax, c.head_dim());
       }},
      {"deltaformer",
       [](const ModelConfig& c) -> std::unique_ptr<TokenMixer> {
         return std::make_unique<DeltaFormerMixer>(
             c.deltaformer, c.krr_precision, c.head_dim());
       }},
  };
  return *factories;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenMixer>> MakeMixer(
    const ModelConfig& config) {
  const auto found = Factories().find(config.mixer);
  if (found == Factories().end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.mixer is \"", config.mixer, "\"; there are ",
                     absl::StrJoin(MixerNames(), ", ")));
  }
  return found->second(config);
}

std::vector<std::string> MixerNames() {
  std::vector<std::string> names;
  for (const auto& [name, factory] : Factories()) names.push_back(name);
  return names;
}

}  // namespace cubit
