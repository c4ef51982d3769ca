// SPDX-License-Identifier: Apache-2.0
//
// A folder of HDF5 token shards as an array of samples. Opening costs
// O(shards): only index.json and each file's attributes are read.

#ifndef CUBIT_DATA_TOKEN_DATASET_H_
#define CUBIT_DATA_TOKEN_DATASET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace cubit {

// What every shard of a data set has in common.
struct DatasetInfo {
  std::string tokenizer;         // name
  std::string tokenizer_sha256;  // of the ids it defines
  std::string tokenizer_folder;  // where its files lie, for LoadTokenizer
  int64_t vocab_size = 0;
  int32_t eot_id = 0;
  int64_t seq_len = 0;
  int64_t num_tokens = 0;     // of the split
  int64_t num_documents = 0;  // of the split
  int64_t num_samples = 0;    // sequences of seq_len + 1 tokens
};

// Sample i is tokens [i * seq_len, i * seq_len + seq_len] of the split's token
// stream (shards one after the other): consecutive samples share one token, so
// every token but the first is a target exactly once.
class TokenDataset {
 public:
  // Opens the shards of `split` ("train" or "validation") below `folders`, in
  // order. Errors name file, object and offset: a folder that is missing, holds
  // no shards or an unfinished preparation, shards of another version,
  // tokenizer or element type, fewer tokens than one sample.
  static absl::StatusOr<std::unique_ptr<TokenDataset>> Open(
      const std::vector<std::string>& folders, const std::string& split,
      int64_t seq_len);
  ~TokenDataset();

  const DatasetInfo& info() const;

  // Reads sample `index` into tokens[seq_len + 1] and the document of each
  // input token, counted from 0 within the sample, into segment_ids[seq_len].
  // A checksum that fails or an id beyond the vocabulary is an error that names
  // file, data set and offset. Thread-compatible: one caller at a time.
  absl::Status ReadSample(int64_t index, int32_t* tokens, int32_t* segment_ids);

 private:
  TokenDataset();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace cubit

#endif  // CUBIT_DATA_TOKEN_DATASET_H_
