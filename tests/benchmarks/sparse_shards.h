// SPDX-License-Identifier: Apache-2.0
//
// Data sets of any size that take next to no disk: shards whose headers are
// those of real ones and whose tokens are holes.

#ifndef CUBIT_TESTS_BENCHMARKS_SPARSE_SHARDS_H_
#define CUBIT_TESTS_BENCHMARKS_SPARSE_SHARDS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace cubit {

// Writes `shards` files of `tokens` / `shards` zeros each and their index.json
// into `folder`, which exists. Takes the room of one shard for a while.
absl::Status WriteSparseDataset(const std::string& folder, int64_t shards,
                                int64_t tokens);

}  // namespace cubit

#endif  // CUBIT_TESTS_BENCHMARKS_SPARSE_SHARDS_H_
