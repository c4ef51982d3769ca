// SPDX-License-Identifier: Apache-2.0
//
// Text from a model: choosing the next token, and the loop around the decoder.

#ifndef CUBIT_LAUNCH_SAMPLER_H_
#define CUBIT_LAUNCH_SAMPLER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

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
};

// The token that follows `logits`: token number `index` of the text. A function
// of its arguments alone. Ties go to the smaller id.
int32_t SampleToken(absl::Span<const float> logits,
                    const SamplingOptions& options, uint64_t index);

// The text that follows `prompt` (the end of text precedes it, as in training),
// without the prompt. Stops at the end of text. `on_text`, if given, receives
// each piece of whole UTF-8 characters as it appears.
absl::StatusOr<std::string> GenerateText(
    const LanguageModel& model, const Tokenizer& tokenizer,
    absl::string_view prompt, const SamplingOptions& options, Stream& stream,
    const std::function<void(absl::string_view)>& on_text);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_SAMPLER_H_
