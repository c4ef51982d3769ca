// SPDX-License-Identifier: Apache-2.0
//
// What a run trains on: one data set, or several that are mixed by weight.

#ifndef CUBIT_DATA_BLENDED_DATASET_H_
#define CUBIT_DATA_BLENDED_DATASET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "data/sample_blend.h"
#include "data/sample_order.h"
#include "data/token_dataset.h"

namespace cubit {

// An endless sequence of samples. Without weights it is that of all folders as
// one data set, in whose epochs every sample comes once. With weights each
// folder is a data set with epochs of its own, and the sequence takes from it
// as often as its weight says.
class BlendedDataset {
 public:
  // `weights` is empty or has one for each folder. Errors as of
  // TokenDataset::Open, and folders with different tokenizers.
  static absl::StatusOr<std::unique_ptr<BlendedDataset>> Open(
      const std::vector<std::string>& folders,
      const std::vector<double>& weights, const std::string& split,
      int64_t seq_len);
  // Of one data set, which must outlive this.
  explicit BlendedDataset(TokenDataset* dataset);

  // Numbers are of all sets together.
  const DatasetInfo& info() const { return info_; }
  // How often each set was gone through before `position`: 1.5 is half of the
  // second epoch.
  std::vector<double> Epochs(int64_t position) const;

  // Which sample of which set stands at `position`: shuffled anew in every
  // epoch of the set, or in the order of its stream.
  SampleBlend::Place SampleAt(uint64_t shuffle_seed, bool shuffle,
                              int64_t position) const;
  // ReadSample of TokenDataset. One caller at a time.
  absl::Status ReadSample(const SampleBlend::Place& place, int32_t* tokens,
                          int32_t* segment_ids);

 private:
  BlendedDataset(std::vector<std::unique_ptr<TokenDataset>> owned,
                 const std::vector<double>& weights);

  std::vector<std::unique_ptr<TokenDataset>> owned_;
  std::vector<TokenDataset*> sets_;
  DatasetInfo info_;
  SampleBlend blend_;
};

}  // namespace cubit

#endif  // CUBIT_DATA_BLENDED_DATASET_H_
