// SPDX-License-Identifier: Apache-2.0
//
// Token by token: a model with the caches of several texts. A prompt goes
// through the parallel form once and fills its text's caches; every later token
// costs one row of the solve and of the attention.
//
// Texts are of any length and come and go on their own. A step takes one token
// of each: the products, which read all weights, run once for all texts; the
// mixers, which read a text's caches, once for each. The products always have
// kMaxTexts rows, so that a text's logits are the same bits whatever the other
// texts are, or if there are none.

#ifndef CUBIT_MODELS_DECODER_H_
#define CUBIT_MODELS_DECODER_H_

#include <array>
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
  static constexpr int64_t kMaxTexts = 8;

  // A token to append to a text.
  struct Next {
    int64_t text = 0;
    int32_t token = 0;
  };

  // Room for `num_texts` (1 to kMaxTexts) texts of `max_tokens` tokens, prompt
  // included. `model` must outlive the decoder.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(
      const LanguageModel* model, int64_t num_texts, int64_t max_tokens,
      Stream* stream);

  // Text number `text` becomes `prompt` (1 to max_tokens ids); the logits of
  // the token after it, [valid_vocab].
  absl::StatusOr<std::vector<float>> Start(int64_t text,
                                           absl::Span<const int32_t> prompt);

  // Appends one token to each text in `next`, at most one entry a text; the
  // logits of the tokens after, in the same order. CHECK: the texts were
  // started and have room.
  std::vector<std::vector<float>> Append(absl::Span<const Next> next);

  // Tokens of a text so far.
  int64_t length(int64_t text) const {
    return lengths_[static_cast<size_t>(text)];
  }

 private:
  Decoder(const LanguageModel* model, int64_t num_texts, int64_t max_tokens,
          Stream* stream)
      : model_(model),
        num_texts_(num_texts),
        max_tokens_(max_tokens),
        stream_(stream) {}
  absl::Status Allocate();
  std::vector<DecodeRow> RowsOf(absl::Span<const Next> next, size_t layer);
  // Logits of a row, to the host, in stream order.
  void CopyLogits(int64_t row, std::vector<float>* logits);

  const LanguageModel* model_;
  int64_t num_texts_;
  int64_t max_tokens_;
  Stream* stream_;
  std::array<int64_t, kMaxTexts> lengths_ = {};
  std::unique_ptr<Arena> arena_;
  Activations step_;  // B = kMaxTexts, T = 1
  ModelScratch scratch_;
  Tensor logits_;  // [kMaxTexts, logits of the head]
  // [text][layer]
  std::vector<std::vector<MixerLayerCache>> caches_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_DECODER_H_
