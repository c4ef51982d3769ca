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

// Over the ranks of a job: every token was counted on one of them.
absl::Status SumBuckets(Communicator& control,
                        std::vector<ValidationBucket>* buckets) {
  static_assert(sizeof(ValidationBucket) == 2 * sizeof(double));
  Stream host;
  const Tensor all(buckets->data(), DType::kFloat64,
                   {static_cast<int64_t>(2 * buckets->size())});
  return control.AllReduce(all, all, ReduceOp::kSum, host);
}

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
  MeshCommunicators& mesh = state->mesh();
  const int64_t dp_size = mesh.size(MeshAxis::kDp);
  BatchLoaderOptions options = options_;
  options.stride = options.micro_batch_size * dp_size;
  const int64_t first = mesh.coordinate().dp;
  options.first_position = first * options.micro_batch_size;
  BatchLoader loader(dataset_.get(), options);
  std::vector<ValidationBucket> buckets(NumBuckets());
  for (int64_t i = first; i < num_batches_; i += dp_size) {
    CUBIT_ASSIGN_OR_RETURN(const Batch batch, loader.Next());
    CUBIT_ASSIGN_OR_RETURN(const LocalLosses local, state->Forward(batch));
    for (size_t n = 0; n < local.losses.size(); ++n) {
      AddLoss(batch, local.rows[n], local.losses[n], &buckets);
    }
  }
  CUBIT_RETURN_IF_ERROR(SumBuckets(mesh.control(), &buckets));
  return ResultOf(buckets);
}

absl::StatusOr<ValidationResult> Validator::Run(LossesOf losses_of) {
  BatchLoader loader(dataset_.get(), options_);
  std::vector<ValidationBucket> buckets(NumBuckets());
  for (int64_t i = 0; i < num_batches_; ++i) {
    CUBIT_ASSIGN_OR_RETURN(const Batch batch, loader.Next());
    CUBIT_ASSIGN_OR_RETURN(const std::vector<float> losses, losses_of(batch));
    for (size_t n = 0; n < losses.size(); ++n) {
      AddLoss(batch, static_cast<int64_t>(n), losses[n], &buckets);
    }
  }
  return ResultOf(buckets);
}

size_t Validator::NumBuckets() const {
  return BucketOf(options_.seq_len - 1) + 1;
}

void Validator::AddLoss(const Batch& batch, int64_t row, float loss,
                        std::vector<ValidationBucket>* buckets) const {
  if (batch.targets[static_cast<size_t>(row)] == kIgnoredTarget) return;
  ValidationBucket& bucket = (*buckets)[BucketOf(row % options_.seq_len)];
  bucket.loss += loss;
  bucket.tokens += 1;
}

absl::StatusOr<ValidationResult> Validator::ResultOf(
    const std::vector<ValidationBucket>& buckets) const {
  const int64_t seq_len = options_.seq_len;
  ValidationResult result;
  for (size_t i = 0; i < buckets.size(); ++i) {
    const ValidationBucket& bucket = buckets[i];
    result.loss += bucket.loss;
    result.tokens += static_cast<int64_t>(bucket.tokens);
    if (bucket.tokens == 0) continue;
    result.loss_by_position.emplace_back(BucketName(i, seq_len),
                                         bucket.loss / bucket.tokens);
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
