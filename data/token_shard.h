// SPDX-License-Identifier: Apache-2.0
//
// HDF5 token shards, version 1: one file of a data set. /tokens, uint16 or
// uint32 [N], holds token ids with the end-of-text id before every document;
// /document_offsets, uint64 [D + 1], says where documents begin and where the
// last ends; the attributes of the root group are TokenShardInfo. A folder of
// shards is described by data/dataset_index.h and read by data/token_dataset.h.

#ifndef CUBIT_DATA_TOKEN_SHARD_H_
#define CUBIT_DATA_TOKEN_SHARD_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

#include "data/hdf5_file.h"
#include "runtime/file_system.h"

namespace cubit {

constexpr int64_t kTokenShardVersion = 1;

// Attributes of a shard, by their names in the file.
struct TokenShardInfo {
  std::string tokenizer;
  std::string tokenizer_sha256;
  int64_t vocab_size = 0;
  int64_t eot_id = 0;
  std::string split;  // "train" or "validation"
  std::string source;
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t max_token_id = 0;
  std::string tokens_xxh3_128;  // of /tokens as little-endian bytes
  std::string created;          // UTC, "2025-01-31T12:00:00Z"
  std::string writer;
};

// "shard_00012.h5".
std::string TokenShardName(int64_t number);

// Element type of /tokens: uint16 where every id of the vocabulary fits.
Hdf5Type TokenType(int64_t vocab_size);

// A shard as it lies on disk.
struct WrittenShard {
  TokenShardInfo info;
  int64_t bytes = 0;
  std::string xxh3_128;  // of the whole file
};

// A shard as it will lie on disk.
struct ShardImage {
  TokenShardInfo info;
  Hdf5Image file;
};

// Writes `image` to `path`. A reader finds the old file or the new one, whole:
// the new one is written aside, synced, read back against its digest and
// renamed. On an error the temporary file is removed.
absl::StatusOr<WrittenShard> WriteShardImage(FileSystem& files,
                                             const ShardImage& image,
                                             const std::string& path);

// Collects documents in memory for one shard after the other.
class TokenShardBuilder {
 public:
  // `info` gives tokenizer, tokenizer_sha256, vocab_size, eot_id, split,
  // source, created and writer; the rest is computed. There is room for
  // `expected_tokens`, which takes memory only as they come.
  explicit TokenShardBuilder(TokenShardInfo info, int64_t expected_tokens = 0);

  // Appends the end-of-text id and `ids`. CHECK: every id is in the vocabulary
  // and none is the end of text.
  void AddDocument(absl::Span<const int32_t> ids);

  const std::string& split() const { return info_.split; }
  int64_t num_tokens() const;
  int64_t num_documents() const;

  // The shard of what was collected (at least one document), in the memory of
  // `old` as far as that reaches.
  absl::StatusOr<ShardImage> MakeImage(Hdf5Image old) const;
  // Forgets what was collected and keeps its memory.
  void Clear();

  // All three: makes the image, writes it and forgets the documents, which are
  // kept on an error.
  absl::StatusOr<WrittenShard> Write(FileSystem& files,
                                     const std::string& path);

 private:
  absl::StatusOr<Hdf5Image> MakeFile(const TokenShardInfo& info,
                                     Hdf5Image old) const;

  TokenShardInfo info_;
  // One of the two, by the vocabulary: as in the file.
  std::vector<uint16_t> tokens16_;
  std::vector<uint32_t> tokens32_;
  std::vector<uint64_t> document_offsets_ = {0};
  int64_t max_token_id_ = 0;
};

// A shard opened for reading: attributes, types and extents checked and found
// to agree, no array read yet. Thread-compatible.
class TokenShard {
 public:
  // `cache_bytes` of /tokens are kept in memory.
  static absl::StatusOr<TokenShard> Open(const std::string& path,
                                         int64_t cache_bytes);

  const std::string& path() const { return path_; }
  const TokenShardInfo& info() const { return info_; }

  // Reads tokens [begin, begin + count) as int32. CHECK: the range is inside.
  // Damage and ids beyond the vocabulary are DataLoss with file and offset.
  absl::Status ReadTokens(int64_t begin, int64_t count, int32_t* tokens);

  // Beginning and end of document `document` (its end-of-text id included).
  // CHECK: 0 <= document < num_documents.
  struct Range {
    int64_t begin;
    int64_t end;
  };
  absl::StatusOr<Range> DocumentRange(int64_t document);

  // Reads everything: tokens against their digest, the vocabulary and
  // max_token_id, offsets against the end-of-text ids. O(1) memory.
  absl::Status Verify();

 private:
  TokenShard(std::string path, TokenShardInfo info, Hdf5Array tokens,
             Hdf5Array document_offsets);
  absl::Status VerifyOffsets(const std::vector<int64_t>& documents,
                             int64_t first);

  std::string path_;
  TokenShardInfo info_;
  Hdf5Array tokens_;
  Hdf5Array document_offsets_;
  std::vector<char> buffer_;  // tokens as stored
};

// XXH3-128 of a file's bytes.
absl::StatusOr<std::string> FileDigest(FileSystem& files,
                                       const std::string& path);

}  // namespace cubit

#endif  // CUBIT_DATA_TOKEN_SHARD_H_
