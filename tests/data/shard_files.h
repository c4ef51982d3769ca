// SPDX-License-Identifier: Apache-2.0
//
// Folders and data sets for tests of the data layer.

#ifndef CUBIT_TESTS_DATA_SHARD_FILES_H_
#define CUBIT_TESTS_DATA_SHARD_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "data/dataset_index.h"
#include "data/token_shard.h"
#include "runtime/file_system.h"

namespace cubit {

// The system's files without the waiting of Sync.
FileSystem& UnsyncedFiles();

// A new empty folder of this test run.
std::string ScratchFolder(const std::string& name);

// CHECK-fails where the file cannot be read.
std::string FileContents(const std::string& path);
void SetFileContents(const std::string& path, const std::string& contents);
// Changes bytes of a file in place; much faster than writing it anew.
void FlipBits(const std::string& path, size_t offset, char bits);

// Documents of random ids below vocab_size - 1, which is the end of text.
// Lengths are 0 to max_length.
std::vector<std::vector<int32_t>> RandomDocuments(uint64_t seed, int64_t count,
                                                  int64_t max_length,
                                                  int64_t vocab_size);

// The stream that documents make: end of text before each.
std::vector<int32_t> TokenStream(
    const std::vector<std::vector<int32_t>>& documents, int32_t eot_id);

// Attributes for shards of a made-up tokenizer whose last id is end of text.
TokenShardInfo ShardInfo(const std::string& split, int64_t vocab_size);

WrittenShard WriteShard(const std::string& path, const TokenShardInfo& info,
                        const std::vector<std::vector<int32_t>>& documents);

// Writes shards[i] as shard i of `folder`, with index.json.
struct ShardContents {
  std::string split;
  std::vector<std::vector<int32_t>> documents;
};
DatasetIndex WriteDataset(const std::string& folder, int64_t vocab_size,
                          const std::vector<ShardContents>& shards);

}  // namespace cubit

#endif  // CUBIT_TESTS_DATA_SHARD_FILES_H_
