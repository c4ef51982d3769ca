// SPDX-License-Identifier: Apache-2.0
//
// //data:inspect: what a folder of token shards holds.

#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "data/dataset_index.h"
#include "data/reader_process.h"
#include "data/token_shard.h"
#include "data/tokenizer.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

ABSL_FLAG(bool, verify, false,
          "read every file and check every checksum, id and document border");
ABSL_FLAG(int64_t, text, -1,
          "print document N of --split as text, counted from 0");
ABSL_FLAG(std::string, split, "train",
          "\"train\" or \"validation\", for --text");

namespace cubit {
namespace {

constexpr char kUsage[] =
    R"(Says what a folder of HDF5 token shards holds.

  inspect DIR [--verify] [--text=N [--split=train or validation]]

Examples:
  bazel run //data:inspect -- shards
  bazel run //data:inspect -- shards --verify
  bazel run //data:inspect -- shards --text=0

Exit status: 0 all is well; 1 the folder is damaged or no data set.
)";

void PrintSummary(const std::string& folder, const DatasetIndex& index) {
  struct Total {
    int64_t shards = 0;
    int64_t documents = 0;
    int64_t tokens = 0;
    int64_t bytes = 0;
  };
  std::map<std::string, Total> totals;
  for (const ShardEntry& shard : index.shards) {
    Total& total = totals[shard.split];
    ++total.shards;
    total.documents += shard.documents;
    total.tokens += shard.tokens;
    total.bytes += shard.bytes;
  }
  absl::PrintF("%s: token shards, version %d\n", folder, kTokenShardVersion);
  absl::PrintF("source     %s\n", index.source);
  absl::PrintF("tokenizer  %s, %d ids, end of text %d, SHA-256 %s\n",
               index.tokenizer, index.vocab_size, index.eot_id,
               index.tokenizer_sha256);
  for (const auto& [split, total] : totals) {
    absl::PrintF("%-10s %d documents, %d tokens, %.1f MiB in %d shards\n",
                 split, total.documents, total.tokens,
                 static_cast<double>(total.bytes) / (1 << 20), total.shards);
  }
}

// Shards may be of others: a process of their own looks at them first.
absl::Status TryShard(const std::string& folder, const ShardEntry& entry,
                      bool verify) {
  return TryShards({JoinPath(folder, entry.file)}, verify, ReaderLimits());
}

// Opens a shard and checks what costs nothing.
absl::StatusOr<TokenShard> OpenShard(const std::string& folder,
                                     const ShardEntry& entry,
                                     const DatasetIndex& index) {
  CUBIT_ASSIGN_OR_RETURN(TokenShard shard,
                         TokenShard::Open(JoinPath(folder, entry.file), 0));
  CUBIT_RETURN_IF_ERROR(CheckShardAgainstIndex(shard, entry, index));
  return shard;
}

absl::Status PrintShard(const std::string& folder, const ShardEntry& entry,
                        const DatasetIndex& index) {
  CUBIT_ASSIGN_OR_RETURN(const TokenShard shard,
                         OpenShard(folder, entry, index));
  absl::PrintF("%-16s %-10s %12d %12d %12d  %s\n", entry.file, entry.split,
               entry.documents, entry.tokens, entry.bytes,
               shard.info().created);
  return absl::OkStatus();
}

// The file's digest first: HDF5 then parses only what was written.
absl::Status VerifyShard(const std::string& folder, const ShardEntry& entry,
                         const DatasetIndex& index) {
  const std::string path = JoinPath(folder, entry.file);
  CUBIT_ASSIGN_OR_RETURN(const std::string digest,
                         FileDigest(FileSystem::Posix(), path));
  if (digest != entry.xxh3_128) {
    return absl::DataLossError(absl::StrCat(
        path, ": has digest ", digest, ", ", kIndexName, " says ",
        entry.xxh3_128, ": damaged; restore it or prepare the data again"));
  }
  CUBIT_RETURN_IF_ERROR(TryShard(folder, entry, /*verify=*/true));
  return OpenShard(folder, entry, index).status();
}

// Every shard, also after a damaged one.
absl::Status VerifyAll(const std::string& folder, const DatasetIndex& index) {
  int damaged = 0;
  for (const ShardEntry& entry : index.shards) {
    ShowProgress(
        absl::StrCat("verify: ", entry.file, " of ", index.shards.size()));
    const absl::Status status = VerifyShard(folder, entry, index);
    if (status.ok()) continue;
    LogError(status.message());
    ++damaged;
  }
  if (damaged > 0) {
    return absl::DataLossError(absl::StrCat(folder, ": ", damaged, " of ",
                                            index.shards.size(),
                                            " shards are damaged"));
  }
  absl::PrintF("verified: %d shards, every checksum, id and border is right\n",
               index.shards.size());
  return absl::OkStatus();
}

absl::Status CheckTokenizer(const Tokenizer& tokenizer,
                            const DatasetIndex& index,
                            const std::string& folder) {
  if (tokenizer.sha256() == index.tokenizer_sha256) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      JoinPath(folder, kTokenizerFolder), ": is tokenizer ", tokenizer.name(),
      " with SHA-256 ", tokenizer.sha256(), ", ", kIndexName, " says ",
      index.tokenizer, " with ", index.tokenizer_sha256));
}

absl::Status PrintText(const std::string& folder, const DatasetIndex& index,
                       const std::string& split, int64_t document) {
  const std::string tokenizer_folder = JoinPath(folder, kTokenizerFolder);
  CUBIT_RETURN_IF_ERROR(TryTokenizer(tokenizer_folder, ReaderLimits()));
  CUBIT_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                         LoadTokenizer(tokenizer_folder));
  CUBIT_RETURN_IF_ERROR(CheckTokenizer(*tokenizer, index, folder));
  int64_t first = 0;  // document of the shard
  for (const ShardEntry& entry : index.shards) {
    if (entry.split != split) continue;
    if (document >= first + entry.documents) {
      first += entry.documents;
      continue;
    }
    CUBIT_RETURN_IF_ERROR(TryShard(folder, entry, /*verify=*/false));
    CUBIT_ASSIGN_OR_RETURN(TokenShard shard, OpenShard(folder, entry, index));
    CUBIT_ASSIGN_OR_RETURN(const TokenShard::Range range,
                           shard.DocumentRange(document - first));
    std::vector<int32_t> ids(static_cast<size_t>(range.end - range.begin));
    CUBIT_RETURN_IF_ERROR(
        shard.ReadTokens(range.begin, range.end - range.begin, ids.data()));
    std::string text;
    tokenizer->Decode(ids, &text);
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (text.empty() || text.back() != '\n') std::fputc('\n', stdout);
    return absl::OkStatus();
  }
  return absl::OutOfRangeError(
      absl::StrCat("--text=", document, ": split ", split, " of ", folder,
                   " has ", first, " documents, counted from 0"));
}

absl::Status Inspect(const std::vector<std::string>& folders) {
  if (folders.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(folders.size(),
                     " folders given, 1 wanted: inspect DIR [--verify] "
                     "[--text=N]"));
  }
  const std::string& folder = folders[0];
  const std::string split = absl::GetFlag(FLAGS_split);
  if (split != "train" && split != "validation") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--split=", split, ": \"train\" or \"validation\" wanted"));
  }
  CUBIT_ASSIGN_OR_RETURN(const DatasetIndex index,
                         ReadDatasetIndex(FileSystem::Posix(), folder));
  if (absl::GetFlag(FLAGS_text) >= 0) {
    return PrintText(folder, index, split, absl::GetFlag(FLAGS_text));
  }
  PrintSummary(folder, index);
  if (absl::GetFlag(FLAGS_verify)) return VerifyAll(folder, index);
  absl::PrintF("\n%-16s %-10s %12s %12s %12s  %s\n", "shard", "split",
               "documents", "tokens", "bytes", "created");
  std::vector<std::string> paths;
  for (const ShardEntry& entry : index.shards) {
    paths.push_back(JoinPath(folder, entry.file));
  }
  CUBIT_RETURN_IF_ERROR(TryShards(paths, /*verify=*/false, ReaderLimits()));
  for (const ShardEntry& entry : index.shards) {
    CUBIT_RETURN_IF_ERROR(PrintShard(folder, entry, index));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  if (const auto child = cubit::RunReaderProcess(argc, argv)) return *child;
  const absl::Status status =
      cubit::Inspect(cubit::ParseCommandLine(argc, argv, cubit::kUsage));
  if (status.ok()) return cubit::kExitDone;
  cubit::LogError(status.message());
  // Damage is bad input here: nothing failed that could be tried again.
  return cubit::kExitWrongRequest;
}
