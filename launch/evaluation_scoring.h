// SPDX-License-Identifier: Apache-2.0
//
// From items to log-likelihoods: text to tokens by the harness's rule, batches
// by length, the model, and what its answers are worth.
//
// What a model has seen of two requests where one's input begins the other's is
// the same, since every position sees only what is before it; so the longer one
// is run for both (a choice of one token costs nothing beside its siblings).

#ifndef CUBIT_LAUNCH_EVALUATION_SCORING_H_
#define CUBIT_LAUNCH_EVALUATION_SCORING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "data/tokenizer.h"
#include "launch/evaluation_tasks.h"
#include "models/sequence_scorer.h"

namespace cubit {

// Tokens whose last `num_targets` are scored; at least one stands before them.
struct ScoringRequest {
  std::vector<int32_t> tokens;
  int64_t num_targets = 0;
};

// White space at the end of the context moves to the continuation. Both
// together are encoded as one text, and what remains after as many tokens as
// the context alone has is the continuation's. Of more than max_length + 1
// tokens the first are dropped. An empty context is the end of text.
// Error: a continuation that has no token of its own, or more than max_length.
absl::StatusOr<ScoringRequest> EncodeRequest(const Tokenizer& tokenizer,
                                             absl::string_view context,
                                             absl::string_view continuation,
                                             int64_t max_length);

// The requests of all choices of all items, in order; on all threads.
absl::StatusOr<std::vector<ScoringRequest>> EncodeItems(
    const Tokenizer& tokenizer, absl::Span<const EvaluationItem> items,
    int64_t max_length);

struct ScoringWork {
  int64_t sequences = 0;      // run, after sharing
  int64_t tokens = 0;         // of these
  int64_t padded_tokens = 0;  // with what fills the batches up
  int64_t targets = 0;        // scored
};

// A batch, and where each loss belongs.
struct PlannedBatch {
  ScoringBatch batch;
  std::vector<size_t> requests;  // of each of batch.positions
};

// Batches of at most `batch_tokens` tokens (or one sequence), longest
// sequences first, so that memory is enough at the end if it was at the
// beginning. Every batch is as wide as its longest sequence, up to a multiple
// of 16.
class ScoringPlan {
 public:
  // `requests` must outlive the plan.
  ScoringPlan(absl::Span<const ScoringRequest> requests, int64_t batch_tokens);

  size_t num_batches() const { return begins_.size() - 1; }
  // Sequences of a batch and their width.
  int64_t BatchSize(size_t index) const {
    return static_cast<int64_t>(begins_[index + 1] - begins_[index]);
  }
  int64_t SeqLen(size_t index) const { return Width(begins_[index]); }
  PlannedBatch Batch(size_t index) const;
  const ScoringWork& work() const { return work_; }

 private:
  struct Sequence {
    size_t request = 0;          // whose input is run
    std::vector<size_t> served;  // requests whose input it begins with
  };
  int64_t Width(size_t begin) const;

  absl::Span<const ScoringRequest> requests_;
  std::vector<Sequence> sequences_;  // longest first
  std::vector<size_t> begins_;       // of batches, in sequences_
  ScoringWork work_;
};

// Sum of log p over the targets of every request, in nats.
absl::StatusOr<std::vector<double>> LogLikelihoods(const ScoringPlan& plan,
                                                   size_t num_requests,
                                                   absl::string_view name,
                                                   SequenceScorer* scorer);

struct Accuracy {
  double mean = 0;
  double standard_error = 0;  // of the mean, as the harness has it
};

struct ItemResult {
  std::vector<double> log_likelihoods;
  // The choice that each rule takes; of equal ones the first.
  int64_t prediction = 0;        // largest log-likelihood
  int64_t prediction_norm = 0;   // the same by character
  int64_t prediction_bytes = 0;  // by byte
};

struct TaskResult {
  Accuracy acc;
  Accuracy acc_norm;
  Accuracy acc_bytes;
  std::vector<ItemResult> items;
};

// Error (FailedPrecondition): a log-likelihood that is not a number.
absl::StatusOr<TaskResult> JudgeItems(absl::Span<const EvaluationItem> items,
                                      absl::Span<const double> log_likelihoods);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_EVALUATION_SCORING_H_
