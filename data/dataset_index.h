// SPDX-License-Identifier: Apache-2.0
//
// index.json: what a folder of token shards holds. Written last, so that a
// folder without it is an unfinished preparation. The shards are numbered
// through; each belongs to one split.

#ifndef CUBIT_DATA_DATASET_INDEX_H_
#define CUBIT_DATA_DATASET_INDEX_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "data/token_shard.h"
#include "runtime/file_system.h"

namespace cubit {

constexpr char kIndexName[] = "index.json";
constexpr char kTokenizerFolder[] = "tokenizer";

struct ShardEntry {
  std::string file;  // TokenShardName(i) for the i-th entry
  std::string split;
  int64_t tokens = 0;
  int64_t documents = 0;
  int64_t bytes = 0;            // of the file
  std::string xxh3_128;         // of the file
  std::string tokens_xxh3_128;  // of its tokens
};

struct DatasetIndex {
  std::string tokenizer;
  std::string tokenizer_sha256;
  int64_t vocab_size = 0;
  int64_t eot_id = 0;
  std::string source;
  std::vector<ShardEntry> shards;
};

// The entry of a shard that was written to TokenShardName(number).
ShardEntry MakeShardEntry(int64_t number, const WrittenShard& shard);

std::string DatasetIndexToJson(const DatasetIndex& index);

// `path` is for messages. Refuses what is not an index of version 1: invalid or
// deep JSON, missing or mistyped members, names other than TokenShardName(i).
absl::StatusOr<DatasetIndex> ParseDatasetIndex(absl::string_view json,
                                               const std::string& path);

// Reads FOLDER/index.json and compares it with the names and sizes of the
// folder's files: a shard that is missing, was added, or has another size is
// named.
absl::StatusOr<DatasetIndex> ReadDatasetIndex(FileSystem& files,
                                              const std::string& folder);

// Whether an open shard is the one that `entry` describes: catches shards that
// were exchanged or come from another preparation.
absl::Status CheckShardAgainstIndex(const TokenShard& shard,
                                    const ShardEntry& entry,
                                    const DatasetIndex& index);

// Whether `name` is that of a token shard, whatever its number.
bool IsShardName(absl::string_view name);

// Deepest nesting of [ and { outside strings, for parsers' limits.
int JsonDepth(absl::string_view json);

}  // namespace cubit

#endif  // CUBIT_DATA_DATASET_INDEX_H_
