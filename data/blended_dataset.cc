// SPDX-License-Identifier: Apache-2.0

#include "data/blended_dataset.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "runtime/check.h"
#include "runtime/philox.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// The first set has the run's own seed, so that it is shuffled as it would be
// alone.
uint64_t SeedOf(uint64_t shuffle_seed, int64_t set) {
  return set == 0
             ? shuffle_seed
             : Philox(shuffle_seed, "blend").Bits(static_cast<uint64_t>(set));
}

absl::Status CheckTokenizers(const std::vector<std::string>& folders,
                             const DatasetInfo& first, const DatasetInfo& other,
                             size_t number) {
  if (first.tokenizer_sha256 == other.tokenizer_sha256 &&
      first.vocab_size == other.vocab_size && first.eot_id == other.eot_id) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      folders[number], ": was prepared with tokenizer ", other.tokenizer,
      " (SHA-256 ", other.tokenizer_sha256, "), ", folders[0], " with ",
      first.tokenizer, " (", first.tokenizer_sha256,
      "); prepare all with one tokenizer"));
}

}  // namespace

BlendedDataset::BlendedDataset(TokenDataset* dataset)
    : sets_({dataset}), info_(dataset->info()), blend_({1}) {}

BlendedDataset::BlendedDataset(std::vector<std::unique_ptr<TokenDataset>> owned,
                               const std::vector<double>& weights)
    : owned_(std::move(owned)),
      info_(owned_[0]->info()),
      blend_(owned_.size() == 1 ? std::vector<double>{1} : weights) {
  for (const auto& set : owned_) sets_.push_back(set.get());
  for (size_t set = 1; set < sets_.size(); ++set) {
    info_.num_tokens += sets_[set]->info().num_tokens;
    info_.num_documents += sets_[set]->info().num_documents;
    info_.num_samples += sets_[set]->info().num_samples;
  }
}

absl::StatusOr<std::unique_ptr<BlendedDataset>> BlendedDataset::Open(
    const std::vector<std::string>& folders, const std::vector<double>& weights,
    const std::string& split, int64_t seq_len) {
  CUBIT_CHECK(weights.empty() || weights.size() == folders.size());
  std::vector<std::unique_ptr<TokenDataset>> sets;
  if (weights.empty()) {
    CUBIT_ASSIGN_OR_RETURN(auto set,
                           TokenDataset::Open(folders, split, seq_len));
    sets.push_back(std::move(set));
  } else {
    for (size_t i = 0; i < folders.size(); ++i) {
      CUBIT_ASSIGN_OR_RETURN(auto set,
                             TokenDataset::Open({folders[i]}, split, seq_len));
      sets.push_back(std::move(set));
      CUBIT_RETURN_IF_ERROR(
          CheckTokenizers(folders, sets[0]->info(), sets[i]->info(), i));
    }
  }
  // The constructor is private.
  return std::unique_ptr<BlendedDataset>(
      new BlendedDataset(std::move(sets), weights));
}

std::vector<double> BlendedDataset::Epochs(int64_t position) const {
  const std::vector<int64_t> counts = blend_.Counts(position);
  std::vector<double> epochs;
  for (size_t set = 0; set < sets_.size(); ++set) {
    epochs.push_back(static_cast<double>(counts[set]) /
                     static_cast<double>(sets_[set]->info().num_samples));
  }
  return epochs;
}

SampleBlend::Place BlendedDataset::SampleAt(uint64_t shuffle_seed, bool shuffle,
                                            int64_t position) const {
  SampleBlend::Place place = blend_.At(position);
  const int64_t samples =
      sets_[static_cast<size_t>(place.set)]->info().num_samples;
  place.position = shuffle
                       ? SampleOrder(SeedOf(shuffle_seed, place.set), samples)
                             .SampleAt(place.position)
                       : place.position % samples;
  return place;
}

absl::Status BlendedDataset::ReadSample(const SampleBlend::Place& place,
                                        int32_t* tokens, int32_t* segment_ids) {
  return sets_[static_cast<size_t>(place.set)]->ReadSample(place.position,
                                                           tokens, segment_ids);
}

}  // namespace cubit
