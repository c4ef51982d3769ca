// SPDX-License-Identifier: Apache-2.0

#include "launch/validation.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

#include "ops/cross_entropy.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kFirstBucket = 128;

// Index of the bucket of `position`: [0, 128), [128, 256), [256, 512), ...
size_t BucketOf(int64_t position) {
  size_t bucket = 0;
  for (int64_t end = kFirstBucket; position >= end; end *= 2) ++bucket;
  return bucket;
}

std::string BucketName(size_t bucket, int64_t seq_len) {
  const int64_t begin = bucket == 0 ? 0 : kFirstBucket << (bucket - 1);
  const int64_t end = std::min(seq_len, kFirstBucket << bucket);
  return absl::StrCat(begin, "-", end - 1);
}

struct Bucket {
  double loss = 0;
  int64_t tokens = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Validator>> Validator::Open(
    const std::vector<std::string>& folders, const RunConfig& config) {
  auto validator = std::unique_ptr<Validator>(new Validator);
  CUBIT_ASSIGN_OR_RETURN(
      validator->dataset_,
      TokenDataset::Open(folders, "validation", config.model().seq_len()));
  BatchLoaderOptions& options = validator->options_;
  options.micro_batch_size = config.batch().micro_batch_size();
  options.stride = options.micro_batch_size;
  options.seq_len = config.model().seq_len();
  // Shuffled with a fixed seed: a few batches are a sample of all documents.
  options.shuffle_seed = 0;
  options.mask_across_documents = config.data().document_mask();
  const int64_t available =
      validator->dataset_->info().num_samples / options.micro_batch_size;
  const int64_t wanted = config.evaluation().max_batches();
  validator->num_batches_ = std::max<int64_t>(
      1, wanted == 0 ? available : std::min(wanted, available));
  return validator;
}

absl::StatusOr<ValidationResult> Validator::Run(TrainState* state) {
  return Run([state](const Batch& batch) {
    std::vector<float> losses;
    state->Forward(batch, &losses);
    return absl::StatusOr<std::vector<float>>(std::move(losses));
  });
}

absl::StatusOr<ValidationResult> Validator::Run(LossesOf losses_of) {
  BatchLoader loader(dataset_.get(), options_);
  const int64_t seq_len = options_.seq_len;
  std::vector<Bucket> buckets(BucketOf(seq_len - 1) + 1);
  for (int64_t i = 0; i < num_batches_; ++i) {
    CUBIT_ASSIGN_OR_RETURN(const Batch batch, loader.Next());
    CUBIT_ASSIGN_OR_RETURN(const std::vector<float> losses, losses_of(batch));
    for (size_t n = 0; n < losses.size(); ++n) {
      if (batch.targets[n] == kIgnoredTarget) continue;
      Bucket& bucket = buckets[BucketOf(static_cast<int64_t>(n) % seq_len)];
      bucket.loss += losses[n];
      ++bucket.tokens;
    }
  }
  ValidationResult result;
  for (size_t i = 0; i < buckets.size(); ++i) {
    const Bucket& bucket = buckets[i];
    result.loss += bucket.loss;
    result.tokens += bucket.tokens;
    if (bucket.tokens == 0) continue;
    result.loss_by_position.emplace_back(
        BucketName(i, seq_len),
        bucket.loss / static_cast<double>(bucket.tokens));
  }
  if (result.tokens == 0) {
    return absl::FailedPreconditionError(
        "the validation batches hold no target that counts; use more of them "
        "(evaluation.max_batches) or turn data.document_mask off");
  }
  result.loss /= static_cast<double>(result.tokens);
  return result;
}

absl::StatusOr<std::vector<float>> AllLosses(const Batch& batch,
                                             const RunConfig& config,
                                             SequenceScorer* scorer) {
  ScoringBatch all;
  all.seq_len = config.model().seq_len();
  all.batch_size = static_cast<int64_t>(batch.inputs.size()) / all.seq_len;
  all.inputs = batch.inputs;
  if (config.data().document_mask()) all.segment_ids = batch.segment_ids;
  all.targets = batch.targets;
  all.positions.resize(batch.targets.size());
  std::iota(all.positions.begin(), all.positions.end(), 0);
  return scorer->Score(all);
}

}  // namespace cubit
