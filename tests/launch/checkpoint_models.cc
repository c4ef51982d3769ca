// SPDX-License-Identifier: Apache-2.0

#include "tests/launch/checkpoint_models.h"

#include <utility>

#include "data/byte_tokenizer.h"
#include "launch/config.h"
#include "launch/model_setup.h"
#include "runtime/check.h"
#include "runtime/philox.h"

namespace cubit {
namespace testing {
namespace {

constexpr char kSmall[] =
    "model { num_layers: 2 hidden_size: 16 num_heads: 2 seq_len: 32 }";

}  // namespace

CheckpointModel MakeSmallModel(const std::string& text, uint64_t seed) {
  return MakeSmallModel(text, seed, MakeByteTokenizer());
}

CheckpointModel MakeSmallModel(const std::string& text, uint64_t seed,
                               std::unique_ptr<Tokenizer> tokenizer) {
  CheckpointModel made;
  auto config = ParseConfig(kSmall, "small");
  auto more = ParseConfig(text, "test");
  CUBIT_CHECK_OK(config);
  CUBIT_CHECK_OK(more);
  made.config = *std::move(config);
  made.config.MergeFrom(*more);
  made.tokenizer = std::move(tokenizer);
  auto model_config =
      MakeModelConfig(made.config, made.tokenizer->vocab_size());
  CUBIT_CHECK_OK(model_config);
  auto model = LanguageModel::Create(*model_config);
  CUBIT_CHECK_OK(model);
  made.model = *std::move(model);
  CUBIT_CHECK_OK(made.model->parameters().Allocate(/*with_gradients=*/false));
  Stream stream;
  CUBIT_CHECK_OK(made.model->parameters().Initialize(seed, stream));
  // Constants too become numbers that only this parameter has.
  for (Parameter& parameter : made.model->parameters().parameters()) {
    const Philox random(seed, parameter.name);
    for (int64_t i = 0; i < parameter.value.num_elements(); ++i) {
      parameter.value.data<float>()[i] +=
          1e-2f *
          static_cast<float>(random.Bits(static_cast<uint64_t>(i)) % 1000);
    }
  }
  return made;
}

std::vector<std::string> ModelKinds() {
  return {
      "",
      "model { cubit { share: true } }",
      "model { cubit { lrr: false } bias: false }",
      "model { mixer: softmax norm: rms_norm mlp: swiglu }",
      R"(model { mixer: softmax softmax { qk_norm: true }
                 tied_embeddings: true })",
      "model { mixer: deltaformer positional_encoding: none }",
      "model { mixer: deltaformer deltaformer { w: k beta: linear } }",
  };
}

std::vector<float> Weights(const CheckpointModel& model) {
  const Tensor flat = model.model->parameters().flat_values();
  const float* begin = flat.data<float>();
  return {begin, begin + flat.num_elements()};
}

}  // namespace testing
}  // namespace cubit
