// SPDX-License-Identifier: Apache-2.0

#include "launch/evaluation_scoring.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "launch/python_text.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

// Widths of batches: fewer shapes, and rows that fill vector registers.
constexpr int64_t kWidthMultiple = 16;

// A batch with an eighth of the tokens that it may have ends before a sequence
// of less than seven eighths of its width: a smaller batch costs less than the
// tokens that fill a larger one up.
constexpr int64_t kSmallestShare = 8;
constexpr double kSmallestWidth = 0.875;

// Tokens that go into the model: the last one is only ever a target.
absl::Span<const int32_t> InputOf(const ScoringRequest& request) {
  return absl::MakeConstSpan(request.tokens)
      .subspan(0, request.tokens.size() - 1);
}

bool IsPrefix(absl::Span<const int32_t> prefix, absl::Span<const int32_t> of) {
  return prefix.size() <= of.size() &&
         std::equal(prefix.begin(), prefix.end(), of.begin());
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer,
                            absl::string_view text) {
  std::vector<int32_t> ids;
  tokenizer.Encode(text, &ids);
  return ids;
}

// `context` is what stands before the continuation, `ids` its tokens.
absl::StatusOr<ScoringRequest> EncodeAfter(const Tokenizer& tokenizer,
                                           absl::string_view context,
                                           const std::vector<int32_t>& ids,
                                           absl::string_view continuation,
                                           int64_t max_length) {
  const std::vector<int32_t> whole =
      Encode(tokenizer, absl::StrCat(context, continuation));
  ScoringRequest request;
  request.tokens = ids;
  if (whole.size() > ids.size()) {
    const auto own = absl::MakeConstSpan(whole).subspan(ids.size());
    request.tokens.insert(request.tokens.end(), own.begin(), own.end());
  }
  request.num_targets = static_cast<int64_t>(request.tokens.size()) -
                        static_cast<int64_t>(ids.size());
  if (ids.empty()) {
    request.tokens.insert(request.tokens.begin(), tokenizer.eot_id());
  }
  if (request.num_targets < 1 || request.num_targets > max_length) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the continuation \"", continuation, "\" has ", request.num_targets,
        " tokens of its own; 1 to ", max_length, " can be scored"));
  }
  const auto extra =
      static_cast<int64_t>(request.tokens.size()) - (max_length + 1);
  if (extra > 0) {
    request.tokens.erase(request.tokens.begin(),
                         request.tokens.begin() + extra);
  }
  return request;
}

// Encodes the choices of an item into `requests`, one for each.
absl::Status EncodeItem(const Tokenizer& tokenizer, const EvaluationItem& item,
                        int64_t max_length, ScoringRequest* requests) {
  std::string context;
  std::vector<int32_t> ids;
  for (size_t i = 0; i < item.choices.size(); ++i) {
    const EvaluationChoice& choice = item.choices[i];
    const absl::string_view stripped = PythonStripRight(choice.context);
    // Most items have one context for all choices.
    if (i == 0 || stripped != context) {
      context = std::string(stripped);
      ids = Encode(tokenizer, context);
    }
    const std::string continuation =
        absl::StrCat(absl::string_view(choice.context).substr(stripped.size()),
                     choice.continuation);
    CUBIT_ASSIGN_OR_RETURN(requests[i], EncodeAfter(tokenizer, context, ids,
                                                    continuation, max_length));
  }
  return absl::OkStatus();
}

Accuracy AccuracyOf(const std::vector<bool>& correct) {
  const auto count = static_cast<double>(correct.size());
  Accuracy accuracy;
  accuracy.mean =
      static_cast<double>(std::count(correct.begin(), correct.end(), true)) /
      count;
  // Of the sample's variance sum (x - mean)^2 / (n - 1), x being 0 or 1.
  const double mean = accuracy.mean;
  accuracy.standard_error =
      correct.size() < 2 ? NAN : std::sqrt(mean * (1 - mean) / (count - 1));
  return accuracy;
}

int64_t FirstLargest(const std::vector<double>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

// The first choice with the text of choice `i`. Equal texts have one score: as
// rows of a product they may be rounded apart.
size_t FirstWithText(const EvaluationItem& item, size_t i) {
  const EvaluationChoice& choice = item.choices[i];
  size_t first = 0;
  while (item.choices[first].continuation != choice.continuation ||
         item.choices[first].context != choice.context) {
    ++first;
  }
  return first;
}

ItemResult JudgeItem(const EvaluationItem& item,
                     absl::Span<const double> log_likelihoods) {
  ItemResult result;
  std::vector<double> by_character;
  std::vector<double> by_byte;
  for (size_t i = 0; i < item.choices.size(); ++i) {
    const EvaluationChoice& choice = item.choices[i];
    const double sum = log_likelihoods[FirstWithText(item, i)];
    result.log_likelihoods.push_back(sum);
    by_character.push_back(sum / static_cast<double>(choice.characters));
    by_byte.push_back(sum / static_cast<double>(choice.bytes));
  }
  result.prediction = FirstLargest(result.log_likelihoods);
  result.prediction_norm = FirstLargest(by_character);
  result.prediction_bytes = FirstLargest(by_byte);
  return result;
}

}  // namespace

absl::StatusOr<ScoringRequest> EncodeRequest(const Tokenizer& tokenizer,
                                             absl::string_view context,
                                             absl::string_view continuation,
                                             int64_t max_length) {
  EvaluationItem item;
  item.choices.push_back(
      {std::string(context), std::string(continuation), 0, 0});
  ScoringRequest request;
  CUBIT_RETURN_IF_ERROR(EncodeItem(tokenizer, item, max_length, &request));
  return request;
}

absl::StatusOr<std::vector<ScoringRequest>> EncodeItems(
    const Tokenizer& tokenizer, absl::Span<const EvaluationItem> items,
    int64_t max_length) {
  std::vector<size_t> first(items.size() + 1);
  for (size_t i = 0; i < items.size(); ++i) {
    first[i + 1] = first[i] + items[i].choices.size();
  }
  std::vector<ScoringRequest> requests(first.back());
  std::vector<absl::Status> errors(items.size());
  constexpr int64_t kGrain = 16;
  ParallelFor(static_cast<int64_t>(items.size()), kGrain,
              [&](int64_t begin, int64_t end) {
                for (auto i = static_cast<size_t>(begin);
                     i < static_cast<size_t>(end); ++i) {
                  errors[i] = EncodeItem(tokenizer, items[i], max_length,
                                         requests.data() + first[i]);
                }
              });
  for (size_t i = 0; i < items.size(); ++i) {
    if (errors[i].ok()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("item ", i + 1, ": ", errors[i].message()));
  }
  return requests;
}

ScoringPlan::ScoringPlan(absl::Span<const ScoringRequest> requests,
                         int64_t batch_tokens)
    : requests_(requests) {
  // In the order of dictionaries an input stands right before the inputs that
  // it begins.
  std::vector<size_t> order(requests.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const auto x = InputOf(requests[a]);
    const auto y = InputOf(requests[b]);
    return std::lexicographical_compare(x.begin(), x.end(), y.begin(), y.end());
  });
  for (size_t i = order.size(); i-- > 0;) {
    if (sequences_.empty() ||
        !IsPrefix(InputOf(requests[order[i]]),
                  InputOf(requests[sequences_.back().request]))) {
      sequences_.push_back({order[i], {}});
    }
    sequences_.back().served.push_back(order[i]);
    work_.targets += requests[order[i]].num_targets;
  }
  std::stable_sort(sequences_.begin(), sequences_.end(),
                   [&](const Sequence& a, const Sequence& b) {
                     return requests[a.request].tokens.size() >
                            requests[b.request].tokens.size();
                   });
  work_.sequences = static_cast<int64_t>(sequences_.size());
  for (const Sequence& sequence : sequences_) {
    work_.tokens +=
        static_cast<int64_t>(InputOf(requests[sequence.request]).size());
  }
  begins_ = {0};
  while (begins_.back() < sequences_.size()) {
    const size_t begin = begins_.back();
    const size_t end = EndOfBatch(begin, batch_tokens);
    begins_.push_back(end);
    work_.padded_tokens += static_cast<int64_t>(end - begin) * Width(begin);
  }
}

int64_t ScoringPlan::Width(size_t sequence) const {
  const auto length = static_cast<int64_t>(
      InputOf(requests_[sequences_[sequence].request]).size());
  return (length + kWidthMultiple - 1) / kWidthMultiple * kWidthMultiple;
}

size_t ScoringPlan::EndOfBatch(size_t begin, int64_t batch_tokens) const {
  const int64_t width = Width(begin);
  const auto most =
      begin + static_cast<size_t>(std::max<int64_t>(1, batch_tokens / width));
  size_t end = begin + 1;
  while (end < std::min(most, sequences_.size())) {
    const bool worth_a_batch = static_cast<int64_t>(end - begin) * width >=
                               batch_tokens / kSmallestShare;
    if (worth_a_batch && static_cast<double>(Width(end)) <
                             kSmallestWidth * static_cast<double>(width)) {
      break;
    }
    ++end;
  }
  return end;
}

PlannedBatch ScoringPlan::Batch(size_t index) const {
  const size_t begin = begins_[index];
  const size_t count = begins_[index + 1] - begin;
  PlannedBatch planned;
  ScoringBatch& batch = planned.batch;
  batch.batch_size = static_cast<int64_t>(count);
  batch.seq_len = Width(begin);
  batch.inputs.resize(count * static_cast<size_t>(batch.seq_len));
  for (size_t b = 0; b < count; ++b) {
    const Sequence& sequence = sequences_[begin + b];
    const auto input = InputOf(requests_[sequence.request]);
    const size_t row = b * static_cast<size_t>(batch.seq_len);
    std::copy(input.begin(), input.end(), batch.inputs.data() + row);
    for (size_t request : sequence.served) {
      const std::vector<int32_t>& tokens = requests_[request].tokens;
      const auto targets = static_cast<size_t>(requests_[request].num_targets);
      for (size_t t = tokens.size() - targets; t < tokens.size(); ++t) {
        batch.positions.push_back(static_cast<int32_t>(row + t - 1));
        batch.targets.push_back(tokens[t]);
        planned.requests.push_back(request);
      }
    }
  }
  return planned;
}

absl::StatusOr<std::vector<double>> LogLikelihoods(const ScoringPlan& plan,
                                                   size_t num_requests,
                                                   absl::string_view name,
                                                   SequenceScorer* scorer) {
  std::vector<double> sums(num_requests);
  for (size_t i = 0; i < plan.num_batches(); ++i) {
    const PlannedBatch planned = plan.Batch(i);
    CUBIT_ASSIGN_OR_RETURN(const std::vector<float> losses,
                           scorer->Score(planned.batch));
    for (size_t n = 0; n < losses.size(); ++n) {
      sums[planned.requests[n]] -= static_cast<double>(losses[n]);
    }
    ShowProgress(absl::StrFormat("%s: %d of %d batches", name, i + 1,
                                 plan.num_batches()));
  }
  return sums;
}

absl::StatusOr<TaskResult> JudgeItems(
    absl::Span<const EvaluationItem> items,
    absl::Span<const double> log_likelihoods) {
  TaskResult result;
  std::vector<bool> correct;
  std::vector<bool> correct_norm;
  std::vector<bool> correct_bytes;
  size_t first = 0;
  for (const EvaluationItem& item : items) {
    const auto own = log_likelihoods.subspan(first, item.choices.size());
    first += item.choices.size();
    for (double value : own) {
      if (std::isfinite(value)) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          "item ", result.items.size() + 1, " has the log-likelihood ", value,
          ": the model's weights give no finite numbers"));
    }
    result.items.push_back(JudgeItem(item, own));
    const ItemResult& judged = result.items.back();
    correct.push_back(judged.prediction == item.gold);
    correct_norm.push_back(judged.prediction_norm == item.gold);
    correct_bytes.push_back(judged.prediction_bytes == item.gold);
  }
  CUBIT_CHECK_EQ(first, log_likelihoods.size());
  CUBIT_CHECK(!items.empty());
  result.acc = AccuracyOf(correct);
  result.acc_norm = AccuracyOf(correct_norm);
  result.acc_bytes = AccuracyOf(correct_bytes);
  return result;
}

}  // namespace cubit
