// SPDX-License-Identifier: Apache-2.0

#include "launch/sampler.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "models/decoder.h"
#include "runtime/philox.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

struct Candidate {
  int32_t id;
  double probability;  // not normalised
};

// Ids by falling logit (ties: smaller id first), cut to top_k, with
// exp((logit - max) / temperature).
std::vector<Candidate> Candidates(absl::Span<const float> logits,
                                  const SamplingOptions& options) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  if (options.top_k > 0 && static_cast<size_t>(options.top_k) < ids.size()) {
    ids.resize(static_cast<size_t>(options.top_k));
  }
  const double max = logits[static_cast<size_t>(ids[0])];
  std::vector<Candidate> candidates;
  candidates.reserve(ids.size());
  for (int32_t id : ids) {
    const double logit = logits[static_cast<size_t>(id)];
    candidates.push_back({id, std::exp((logit - max) / options.temperature)});
  }
  return candidates;
}

double Sum(const std::vector<Candidate>& candidates) {
  double sum = 0;
  for (const Candidate& c : candidates) sum += c.probability;
  return sum;
}

// Keeps the smallest head of the list that has `top_p` of the probability.
void KeepTopP(double top_p, std::vector<Candidate>* candidates) {
  const double wanted = top_p * Sum(*candidates);
  double seen = 0;
  for (size_t i = 0; i < candidates->size(); ++i) {
    seen += (*candidates)[i].probability;
    if (seen >= wanted) {
      candidates->resize(i + 1);
      return;
    }
  }
}

// Bytes at the end of `text` that begin a UTF-8 character without ending it.
size_t UnfinishedBytes(absl::string_view text) {
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const size_t length = byte >= 0xF0   ? 4
                          : byte >= 0xE0 ? 3
                          : byte >= 0xC0 ? 2
                                         : 1;
    return length > back ? back : 0;
  }
  return 0;
}

}  // namespace

int32_t SampleToken(absl::Span<const float> logits,
                    const SamplingOptions& options, uint64_t index) {
  if (options.temperature == 0) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) -
                                logits.begin());
  }
  std::vector<Candidate> candidates = Candidates(logits, options);
  if (options.top_p < 1) KeepTopP(options.top_p, &candidates);
  double left =
      Philox(options.seed, "sampling").Uniform(index) * Sum(candidates);
  for (const Candidate& c : candidates) {
    left -= c.probability;
    if (left < 0) return c.id;
  }
  return candidates.back().id;
}

absl::StatusOr<std::string> GenerateText(
    const LanguageModel& model, const Tokenizer& tokenizer,
    absl::string_view prompt, const SamplingOptions& options, Stream& stream,
    const std::function<void(absl::string_view)>& on_text) {
  std::vector<int32_t> ids = {tokenizer.eot_id()};
  tokenizer.Encode(prompt, &ids);
  const auto prompt_tokens = static_cast<int64_t>(ids.size());
  CUBIT_ASSIGN_OR_RETURN(
      std::unique_ptr<Decoder> decoder,
      Decoder::Create(&model, prompt_tokens + options.max_tokens, &stream));
  CUBIT_ASSIGN_OR_RETURN(std::vector<float> logits, decoder->Start(ids));
  std::string text;
  size_t shown = 0;
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    const int32_t token =
        SampleToken(logits, options, static_cast<uint64_t>(i));
    if (token == tokenizer.eot_id()) break;
    tokenizer.Decode({token}, &text);
    const size_t whole = text.size() - UnfinishedBytes(text);
    if (on_text && whole > shown) {
      on_text(absl::string_view(text).substr(shown, whole - shown));
      shown = whole;
    }
    if (i + 1 < options.max_tokens) logits = decoder->Append(token);
  }
  if (on_text && text.size() > shown) {
    on_text(absl::string_view(text).substr(shown));
  }
  return text;
}

}  // namespace cubit
