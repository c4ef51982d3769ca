// SPDX-License-Identifier: Apache-2.0
//
// Text from a model: choosing the next token, and the loop around the decoder.

#ifndef CUBIT_LAUNCH_SAMPLER_H_
#define CUBIT_LAUNCH_SAMPLER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "data/tokenizer.h"
#include "models/language_model.h"

namespace cubit {

struct SamplingOptions {
  double temperature = 0.8;  // 0: always the most likely token
  int64_t top_k = 0;         // 0: no limit
  double top_p = 1.0;        // smallest set of tokens with this probability
  uint64_t seed = 0;
  int64_t max_tokens = 200;  // new ones
  // A text ends before the first of these that it comes to hold.
  std::vector<std::string> stop;
};

// Error: a value that has no meaning, named as the flag that sets it.
absl::Status CheckSamplingOptions(const SamplingOptions& options);

// The token that follows `logits`: token number `index` of the text. A function
// of its arguments alone. Ties go to the smaller id.
int32_t SampleToken(absl::Span<const float> logits,
                    const SamplingOptions& options, uint64_t index);

enum class FinishReason {
  kLength,     // max_tokens
  kEndOfText,  // the model ended the document
  kStop,       // a stop string
};
absl::string_view Name(FinishReason reason);

struct GeneratedText {
  std::string text;  // without the prompt and the stop string
  FinishReason reason = FinishReason::kLength;
  int64_t num_tokens = 0;  // chosen, the one that ended it included
};

// Receives a piece of whole UTF-8 characters of text number `index` as soon as
// no stop string can take it back.
using OnText = std::function<void(size_t index, absl::string_view piece)>;
// Told once that a text is complete.
using OnFinish = std::function<void(size_t index, const GeneratedText& text)>;

// The texts that follow `prompts` (the end of text precedes each, as in
// training). A text is a function of the model, its prompt and `options`: the
// same alone and among others, bit for bit. Both callbacks may be empty.
absl::StatusOr<std::vector<GeneratedText>> GenerateTexts(
    const LanguageModel& model, const Tokenizer& tokenizer,
    absl::Span<const std::string> prompts, const SamplingOptions& options,
    Stream& stream, const OnText& on_text, const OnFinish& on_finish);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_SAMPLER_H_
