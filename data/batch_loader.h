// SPDX-License-Identifier: Apache-2.0
//
// Batches for training, read ahead by a background thread.

#ifndef CUBIT_DATA_BATCH_LOADER_H_
#define CUBIT_DATA_BATCH_LOADER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

#include "data/blended_dataset.h"
#include "data/sample_blend.h"
#include "data/token_dataset.h"

namespace cubit {

// One micro-batch in host memory.
struct Batch {
  std::vector<int32_t> inputs;       // [B, T]
  std::vector<int32_t> targets;      // [B, T]; kIgnoredTarget where masked
  std::vector<int32_t> segment_ids;  // [B, T]
  int64_t valid_tokens = 0;          // targets that count
};

struct BatchLoaderOptions {
  int64_t micro_batch_size = 1;
  int64_t seq_len = 0;
  uint64_t shuffle_seed = 0;
  bool shuffle = true;
  // The first sample to read, as a position in the endless order of samples
  // without those that are skipped.
  int64_t first_position = 0;
  // Positions in the order with them, sorted, without overlaps. None begins or
  // ends inside a micro-batch.
  std::vector<PositionRange> skipped;
  // Samples between the starts of consecutive micro-batches: micro_batch_size
  // for one data-parallel rank, times dp_size for several.
  int64_t stride = 1;
  // Whether a target that begins another document is masked (document_mask).
  bool mask_across_documents = false;
  int prefetch = 4;  // micro-batches read ahead
};

// Positions: micro-batch n holds samples at positions first_position + n *
// stride + [0, micro_batch_size). Destroying the loader stops its thread.
class BatchLoader {
 public:
  // `dataset` must outlive the loader and be used by nothing else.
  BatchLoader(BlendedDataset* dataset, const BatchLoaderOptions& options);
  BatchLoader(TokenDataset* dataset, const BatchLoaderOptions& options);
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  // The next micro-batch, or the error that reading it met (which repeats).
  absl::StatusOr<Batch> Next();

  // Seconds that Next spent waiting so far.
  double wait_seconds() const;

 private:
  void Start();

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace cubit

#endif  // CUBIT_DATA_BATCH_LOADER_H_
