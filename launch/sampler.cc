// SPDX-License-Identifier: Apache-2.0

#include "launch/sampler.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

#include "launch/text_tail.h"
#include "models/decoder.h"
#include "runtime/check.h"
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

absl::Status CheckSamplingOptions(const SamplingOptions& options) {
  if (!(options.temperature >= 0) || std::isinf(options.temperature)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--temperature is ", options.temperature, "; give 0 or more"));
  }
  if (options.top_k < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--top_k is ", options.top_k, "; give 0 or more"));
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--top_p is ", options.top_p, "; give a number in (0, 1]"));
  }
  if (options.max_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max_tokens is ", options.max_tokens, "; give 1 or more"));
  }
  for (const std::string& stop : options.stop) {
    if (stop.empty()) {
      return absl::InvalidArgumentError(
          "--stop is empty; give at least one character, or leave it out");
    }
  }
  return absl::OkStatus();
}

absl::string_view Name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kEndOfText:
      return "end_of_text";
    case FinishReason::kStop:
      return "stop";
  }
  CUBIT_CHECK(false) << static_cast<int>(reason);
}

namespace {

// The loop over all prompts. The decoder holds a few texts at a time; one that
// is complete makes room for the next prompt.
class Generation {
 public:
  Generation(const Tokenizer& tokenizer, const SamplingOptions& options,
             const OnText& on_text, const OnFinish& on_finish, size_t count)
      : tokenizer_(tokenizer),
        options_(options),
        on_text_(on_text),
        on_finish_(on_finish),
        texts_(count) {}

  absl::Status Run(const LanguageModel& model,
                   const std::vector<std::vector<int32_t>>& prompts,
                   Stream& stream);
  std::vector<GeneratedText> TakeTexts() { return std::move(texts_); }

 private:
  struct Slot {
    Slot(size_t number, const std::vector<std::string>& stop)
        : index(number), tail(stop) {}
    size_t index;  // of the prompt
    TextTail tail;
    int32_t token = 0;  // chosen, not yet appended
  };

  // Chooses the slot's next token; false if its text is complete.
  bool Choose(absl::Span<const float> logits, Slot* slot);
  absl::Status Fill(const std::vector<std::vector<int32_t>>& prompts,
                    Decoder* decoder);
  void Step(Decoder* decoder);
  void Finish(FinishReason reason, Slot* slot);
  void Show(size_t index, absl::string_view piece) {
    if (on_text_ && !piece.empty()) on_text_(index, piece);
  }

  const Tokenizer& tokenizer_;
  const SamplingOptions& options_;
  const OnText& on_text_;
  const OnFinish& on_finish_;
  std::vector<GeneratedText> texts_;
  std::vector<std::unique_ptr<Slot>> slots_;  // null: free
  size_t next_prompt_ = 0;
};

void Generation::Finish(FinishReason reason, Slot* slot) {
  Show(slot->index, slot->tail.TakeRest());
  GeneratedText& result = texts_[slot->index];
  result.text = slot->tail.text();
  result.reason = reason;
  if (on_finish_) on_finish_(slot->index, result);
}

bool Generation::Choose(absl::Span<const float> logits, Slot* slot) {
  GeneratedText& result = texts_[slot->index];
  slot->token =
      SampleToken(logits, options_, static_cast<uint64_t>(result.num_tokens));
  ++result.num_tokens;
  if (slot->token == tokenizer_.eot_id()) {
    Finish(FinishReason::kEndOfText, slot);
    return false;
  }
  std::string bytes;
  tokenizer_.Decode({slot->token}, &bytes);
  if (slot->tail.Append(bytes)) {
    Finish(FinishReason::kStop, slot);
    return false;
  }
  Show(slot->index, slot->tail.TakeReady());
  if (result.num_tokens == options_.max_tokens) {
    Finish(FinishReason::kLength, slot);
    return false;
  }
  return true;
}

absl::Status Generation::Fill(const std::vector<std::vector<int32_t>>& prompts,
                              Decoder* decoder) {
  for (size_t i = 0; i < slots_.size(); ++i) {
    while (slots_[i] == nullptr && next_prompt_ < prompts.size()) {
      const std::vector<int32_t>& prompt = prompts[next_prompt_];
      auto slot = std::make_unique<Slot>(next_prompt_++, options_.stop);
      CUBIT_ASSIGN_OR_RETURN(const std::vector<float> logits,
                             decoder->Start(static_cast<int64_t>(i), prompt));
      if (Choose(logits, slot.get())) slots_[i] = std::move(slot);
    }
  }
  return absl::OkStatus();
}

void Generation::Step(Decoder* decoder) {
  std::vector<Decoder::Next> next;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i] == nullptr) continue;
    next.push_back({static_cast<int64_t>(i), slots_[i]->token});
  }
  const std::vector<std::vector<float>> logits = decoder->Append(next);
  for (size_t n = 0; n < next.size(); ++n) {
    std::unique_ptr<Slot>& slot = slots_[static_cast<size_t>(next[n].text)];
    if (!Choose(logits[n], slot.get())) slot = nullptr;
  }
}

absl::Status Generation::Run(const LanguageModel& model,
                             const std::vector<std::vector<int32_t>>& prompts,
                             Stream& stream) {
  size_t longest = 0;
  for (const std::vector<int32_t>& prompt : prompts) {
    longest = std::max(longest, prompt.size());
  }
  slots_.resize(
      std::min(prompts.size(), static_cast<size_t>(Decoder::kMaxTexts)));
  CUBIT_ASSIGN_OR_RETURN(
      std::unique_ptr<Decoder> decoder,
      Decoder::Create(&model, static_cast<int64_t>(slots_.size()),
                      static_cast<int64_t>(longest) + options_.max_tokens,
                      &stream));
  for (;;) {
    CUBIT_RETURN_IF_ERROR(Fill(prompts, decoder.get()));
    if (std::all_of(slots_.begin(), slots_.end(),
                    [](const auto& slot) { return slot == nullptr; })) {
      return absl::OkStatus();
    }
    Step(decoder.get());
  }
}

}  // namespace

absl::StatusOr<std::vector<GeneratedText>> GenerateTexts(
    const LanguageModel& model, const Tokenizer& tokenizer,
    absl::Span<const std::string> prompts, const SamplingOptions& options,
    Stream& stream, const OnText& on_text, const OnFinish& on_finish) {
  CUBIT_RETURN_IF_ERROR(CheckSamplingOptions(options));
  std::vector<std::vector<int32_t>> ids;
  for (const std::string& prompt : prompts) {
    ids.push_back({tokenizer.eot_id()});
    tokenizer.Encode(prompt, &ids.back());
  }
  Generation generation(tokenizer, options, on_text, on_finish, prompts.size());
  if (!prompts.empty()) {
    CUBIT_RETURN_IF_ERROR(generation.Run(model, ids, stream));
  }
  return generation.TakeTexts();
}

}  // namespace cubit
