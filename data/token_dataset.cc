// SPDX-License-Identifier: Apache-2.0

#include "data/token_dataset.h"

#include <algorithm>
#include <list>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "data/dataset_index.h"
#include "data/token_shard.h"
#include "runtime/check.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Shards held open at a time: bounds memory and file descriptors for data sets
// of thousands of shards.
constexpr size_t kMaxOpenShards = 256;
// Decoded chunks kept over all open shards. A data set that fits is read from
// disk once.
constexpr int64_t kCacheBytes = int64_t{256} << 20;

}  // namespace

struct TokenDataset::State {
  // A shard of the split: where its tokens lie in the stream.
  struct Shard {
    std::string path;
    int64_t begin = 0;  // of its tokens in the stream
    int64_t end = 0;
  };
  struct OpenShard {
    size_t number;
    TokenShard shard;
  };

  DatasetInfo info;
  std::vector<Shard> shards;
  int64_t cache_bytes = 0;    // for one open shard
  std::list<OpenShard> open;  // most recently used first

  absl::Status AddFolder(const std::string& folder, const std::string& split);
  absl::Status AddShard(const std::string& folder, const ShardEntry& entry,
                        const DatasetIndex& index);
  absl::Status CheckTokenizer(const std::string& folder,
                              const DatasetIndex& index);
  absl::StatusOr<TokenShard*> Get(size_t number);
};

// One model reads every folder, so all must have one vocabulary.
absl::Status TokenDataset::State::CheckTokenizer(const std::string& folder,
                                                 const DatasetIndex& index) {
  if (info.tokenizer_folder.empty()) {
    info.tokenizer = index.tokenizer;
    info.tokenizer_sha256 = index.tokenizer_sha256;
    info.tokenizer_folder = JoinPath(folder, kTokenizerFolder);
    info.vocab_size = index.vocab_size;
    info.eot_id = static_cast<int32_t>(index.eot_id);
    return absl::OkStatus();
  }
  if (info.tokenizer_sha256 == index.tokenizer_sha256 &&
      info.vocab_size == index.vocab_size && info.eot_id == index.eot_id) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat(folder, ": was prepared with tokenizer ", index.tokenizer,
                   " (SHA-256 ", index.tokenizer_sha256, ", ", index.vocab_size,
                   " ids), the folders before it with ", info.tokenizer, " (",
                   info.tokenizer_sha256, ", ", info.vocab_size,
                   " ids); prepare all with one tokenizer"));
}

absl::Status TokenDataset::State::AddShard(const std::string& folder,
                                           const ShardEntry& entry,
                                           const DatasetIndex& index) {
  const std::string path = JoinPath(folder, entry.file);
  // Opened for its checks alone: nothing but attributes is read.
  CUBIT_ASSIGN_OR_RETURN(const TokenShard shard, TokenShard::Open(path, 0));
  CUBIT_RETURN_IF_ERROR(CheckShardAgainstIndex(shard, entry, index));
  shards.push_back({path, info.num_tokens, info.num_tokens + entry.tokens});
  info.num_tokens += entry.tokens;
  info.num_documents += entry.documents;
  return absl::OkStatus();
}

absl::Status TokenDataset::State::AddFolder(const std::string& folder,
                                            const std::string& split) {
  CUBIT_ASSIGN_OR_RETURN(const DatasetIndex index,
                         ReadDatasetIndex(FileSystem::Posix(), folder));
  CUBIT_RETURN_IF_ERROR(CheckTokenizer(folder, index));
  for (const ShardEntry& entry : index.shards) {
    if (entry.split != split) continue;
    CUBIT_RETURN_IF_ERROR(AddShard(folder, entry, index));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenShard*> TokenDataset::State::Get(size_t number) {
  const auto found = std::find_if(
      open.begin(), open.end(),
      [number](const OpenShard& shard) { return shard.number == number; });
  if (found != open.end()) {
    open.splice(open.begin(), open, found);
    return &open.front().shard;
  }
  const Shard& wanted = shards[number];
  CUBIT_ASSIGN_OR_RETURN(TokenShard shard,
                         TokenShard::Open(wanted.path, cache_bytes));
  if (shard.info().num_tokens != wanted.end - wanted.begin ||
      shard.info().tokenizer_sha256 != info.tokenizer_sha256) {
    return absl::DataLossError(absl::StrCat(
        wanted.path, ": was exchanged since the data set was opened"));
  }
  if (open.size() == kMaxOpenShards) open.pop_back();
  open.push_front({number, std::move(shard)});
  return &open.front().shard;
}

TokenDataset::TokenDataset() : state_(std::make_unique<State>()) {}
TokenDataset::~TokenDataset() = default;

absl::StatusOr<std::unique_ptr<TokenDataset>> TokenDataset::Open(
    const std::vector<std::string>& folders, const std::string& split,
    int64_t seq_len) {
  CUBIT_CHECK_GE(seq_len, 1);
  CUBIT_CHECK(split == "train" || split == "validation") << split;
  if (folders.empty()) {
    return absl::InvalidArgumentError(
        "no data folder is given; folders written by //data:prepare wanted");
  }
  // The constructor is private.
  std::unique_ptr<TokenDataset> dataset(new TokenDataset);
  State& state = *dataset->state_;
  state.info.seq_len = seq_len;
  for (const std::string& folder : folders) {
    CUBIT_RETURN_IF_ERROR(state.AddFolder(folder, split));
  }
  const std::string where = absl::StrJoin(folders, ", ");
  if (state.shards.empty()) {
    return absl::NotFoundError(
        absl::StrCat(where, ": holds no ", split,
                     " documents; prepare the data with --validation_fraction "
                     "between 0 and 0.5"));
  }
  state.info.num_samples = (state.info.num_tokens - 1) / seq_len;
  if (state.info.num_samples < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": split ", split, " has ", state.info.num_tokens,
        " tokens, one sample of seq_len ", seq_len, " needs ", seq_len + 1,
        "; prepare more text or choose a smaller seq_len"));
  }
  state.cache_bytes = kCacheBytes / static_cast<int64_t>(std::min(
                                        kMaxOpenShards, state.shards.size()));
  return dataset;
}

const DatasetInfo& TokenDataset::info() const { return state_->info; }

absl::Status TokenDataset::ReadSample(int64_t index, int32_t* tokens,
                                      int32_t* segment_ids) {
  CUBIT_CHECK(index >= 0 && index < state_->info.num_samples)
      << index << " of " << state_->info.num_samples;
  const int64_t seq_len = state_->info.seq_len;
  int64_t position = index * seq_len;
  const int64_t end = position + seq_len + 1;
  const auto& shards = state_->shards;
  auto shard = std::upper_bound(
      shards.begin(), shards.end(), position,
      [](int64_t at, const State::Shard& other) { return at < other.end; });
  for (; position < end; ++shard) {
    const int64_t count = std::min(end, shard->end) - position;
    CUBIT_ASSIGN_OR_RETURN(
        TokenShard * open,
        state_->Get(static_cast<size_t>(shard - shards.begin())));
    CUBIT_RETURN_IF_ERROR(
        open->ReadTokens(position - shard->begin, count, tokens));
    tokens += count;
    position += count;
  }
  // A document begins with its end-of-text id, which occurs nowhere else: the
  // same borders as /document_offsets, without reading it.
  tokens -= seq_len + 1;
  segment_ids[0] = 0;
  for (int64_t i = 1; i < seq_len; ++i) {
    segment_ids[i] =
        segment_ids[i - 1] + (tokens[i] == state_->info.eot_id ? 1 : 0);
  }
  return absl::OkStatus();
}

}  // namespace cubit
