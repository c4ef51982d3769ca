// SPDX-License-Identifier: Apache-2.0
//
// Token by token: a model with the caches of one batch of texts. The prompt
// goes through the parallel form once and fills the caches; every later token
// costs one row of the solve and of the attention.

#ifndef CUBIT_MODELS_DECODER_H_
#define CUBIT_MODELS_DECODER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "models/language_model.h"
#include "runtime/memory.h"

namespace cubit {

class Decoder {
 public:
  // Room for one text of `max_tokens` tokens, prompt included. `model` must
  // outlive the decoder.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(
      const LanguageModel* model, int64_t max_tokens, Stream* stream);

  // Starts a text with `prompt` (1 to max_tokens ids) and returns the logits of
  // the token after it, [valid_vocab].
  absl::StatusOr<std::vector<float>> Start(absl::Span<const int32_t> prompt);

  // Appends one token; the logits of the next one. CHECK: there is room.
  std::vector<float> Append(int32_t token);

  // Tokens so far.
  int64_t length() const { return length_; }

 private:
  Decoder(const LanguageModel* model, int64_t max_tokens, Stream* stream)
      : model_(model), max_tokens_(max_tokens), stream_(stream) {}
  absl::Status Allocate();
  // Logits of `hidden` [1, D], on the host.
  std::vector<float> LogitsOf(const LayerContext& context, ConstTensor hidden);

  const LanguageModel* model_;
  int64_t max_tokens_;
  Stream* stream_;
  int64_t length_ = 0;
  std::unique_ptr<Arena> arena_;
  Activations step_;  // B = T = 1
  ModelScratch scratch_;
  Tensor logits_;  // [1, logits of the head]
  std::vector<MixerLayerCache> caches_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_DECODER_H_
