// SPDX-License-Identifier: Apache-2.0
//
// Loss on held-out documents, the same batches every time.

#ifndef CUBIT_LAUNCH_VALIDATION_H_
#define CUBIT_LAUNCH_VALIDATION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

#include "data/batch_loader.h"
#include "data/token_dataset.h"
#include "launch/train_state.h"
#include "models/sequence_scorer.h"

namespace cubit {

struct ValidationResult {
  double loss = 0;  // nats per token
  int64_t tokens = 0;
  // Mean loss by position in the sequence: "0-127", "128-255", then doubling.
  std::vector<std::pair<std::string, double>> loss_by_position;
};

// What was summed over the tokens of some positions; both fields are doubles so
// that ranks can add them.
struct ValidationBucket {
  double loss = 0;
  double tokens = 0;
};

class Validator {
 public:
  // Opens the validation split below `folders`.
  static absl::StatusOr<std::unique_ptr<Validator>> Open(
      const std::vector<std::string>& folders, const RunConfig& config);

  // The loss of every token of a batch, [N].
  using LossesOf =
      absl::FunctionRef<absl::StatusOr<std::vector<float>>(const Batch&)>;

  absl::StatusOr<ValidationResult> Run(LossesOf losses_of);
  // By all ranks of a run together, each dp rank with its part of the batches;
  // the result is the same on all.
  absl::StatusOr<ValidationResult> Run(TrainState* state);

 private:
  Validator() = default;

  size_t NumBuckets() const;
  // The loss of token `row` of the batch [B, T].
  void AddLoss(const Batch& batch, int64_t row, float loss,
               std::vector<ValidationBucket>* buckets) const;
  absl::StatusOr<ValidationResult> ResultOf(
      const std::vector<ValidationBucket>& buckets) const;

  std::unique_ptr<TokenDataset> dataset_;
  BatchLoaderOptions options_;
  int64_t num_batches_ = 0;
};

// The loss of every token of `batch` for Run, by a model of `config` that is
// not being trained.
absl::StatusOr<std::vector<float>> AllLosses(const Batch& batch,
                                             const RunConfig& config,
                                             SequenceScorer* scorer);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_VALIDATION_H_
