// SPDX-License-Identifier: Apache-2.0
//
// How fast batches come from token shards: the first one from a start anywhere,
// then alone, and beside a training step that takes its time.

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "data/batch_loader.h"
#include "data/dataset_index.h"
#include "data/token_dataset.h"
#include "data/token_shard.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/philox.h"
#include "runtime/status_macros.h"
#include "tests/benchmarks/sparse_shards.h"
#include "tests/benchmarks/write_json.h"

ABSL_FLAG(std::string, data, "",
          "folder of token shards; default: random tokens, made and removed");
ABSL_FLAG(std::string, make_sparse, "",
          "only write a data set of --tokens zeros into this folder, in "
          "--sparse_shards files of holes");
ABSL_FLAG(int64_t, sparse_shards, 2000, "files of --make_sparse");
ABSL_FLAG(int64_t, tokens, int64_t{64} << 20,
          "of the random data set, in shards of 16 Mi");
ABSL_FLAG(int64_t, seq_len, 1024, "tokens of a sample");
ABSL_FLAG(int64_t, micro_batch_size, 8, "samples of a micro-batch");
ABSL_FLAG(double, seconds, 2.0, "time to spend on each figure");
ABSL_FLAG(double, train_tokens_per_second, 100000,
          "what the training step that is imitated consumes");
ABSL_FLAG(std::string, json, "", "file that gets the figures as JSON");

namespace cubit {
namespace {

constexpr char kUsage[] =
    "Measures how fast micro-batches come from token shards.\n\n"
    "  bazel run //tests/benchmarks:loader -- [--data=DIR] [--json=FILE]\n"
    "  bazel run //tests/benchmarks:loader -- --make_sparse=DIR "
    "--tokens=1000000000000\n";

constexpr int64_t kVocabSize = 50257;
constexpr int64_t kShardTokens = int64_t{16} << 20;
constexpr int64_t kDocumentTokens = 1023;

double Now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Random documents of equal length.
absl::Status WriteRandomDataset(const std::string& folder, int64_t tokens) {
  TokenShardInfo info;
  info.tokenizer = "random";
  info.vocab_size = kVocabSize;
  info.eot_id = kVocabSize - 1;
  info.split = "train";
  DatasetIndex index;
  index.tokenizer = info.tokenizer;
  index.vocab_size = info.vocab_size;
  index.eot_id = info.eot_id;
  const Philox random(1, "tokens");
  uint64_t next = 0;
  std::vector<int32_t> document(kDocumentTokens);
  while (tokens > 0) {
    TokenShardBuilder builder(info);
    const int64_t wanted = std::min(tokens, kShardTokens);
    while (builder.num_tokens() < wanted) {
      for (int32_t& id : document) {
        id = static_cast<int32_t>(random.Bits(next++) % (kVocabSize - 1));
      }
      builder.AddDocument(document);
    }
    tokens -= wanted;
    const int64_t number = static_cast<int64_t>(index.shards.size());
    CUBIT_ASSIGN_OR_RETURN(
        const WrittenShard shard,
        builder.Write(FileSystem::Posix(),
                      JoinPath(folder, TokenShardName(number))));
    index.shards.push_back(MakeShardEntry(number, shard));
  }
  return WriteFileAtomically(FileSystem::Posix(), JoinPath(folder, kIndexName),
                             DatasetIndexToJson(index));
}

struct Figures {
  double tokens_per_second = 0;
  double wait_seconds = 0;
  int64_t batches = 0;
};

// Takes batches for `seconds`, resting `step_seconds` after each as a training
// step would.
absl::StatusOr<Figures> Consume(TokenDataset& dataset, bool shuffle,
                                double seconds, double step_seconds) {
  BatchLoaderOptions options;
  options.micro_batch_size = absl::GetFlag(FLAGS_micro_batch_size);
  options.stride = options.micro_batch_size;
  options.seq_len = dataset.info().seq_len;
  options.shuffle = shuffle;
  BatchLoader loader(&dataset, options);
  Figures figures;
  const double begin = Now();
  while (figures.batches == 0 || Now() < begin + seconds) {
    CUBIT_ASSIGN_OR_RETURN(const Batch batch, loader.Next());
    ++figures.batches;
    std::this_thread::sleep_for(std::chrono::duration<double>(step_seconds));
  }
  const double tokens = static_cast<double>(
      figures.batches * options.micro_batch_size * options.seq_len);
  figures.tokens_per_second = tokens / (Now() - begin);
  figures.wait_seconds = loader.wait_seconds();
  return figures;
}

double PeakMegabytes() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

// The first batch from the beginning, the middle and far into later epochs.
absl::Status MeasureSeeks(TokenDataset& dataset, nlohmann::json& results) {
  const int64_t samples = dataset.info().num_samples;
  for (const int64_t position : {int64_t{0}, samples / 2, 1000 * samples + 7}) {
    const double begin = Now();
    BatchLoaderOptions options;
    options.micro_batch_size = absl::GetFlag(FLAGS_micro_batch_size);
    options.stride = options.micro_batch_size;
    options.seq_len = dataset.info().seq_len;
    options.first_position = position;
    BatchLoader loader(&dataset, options);
    CUBIT_RETURN_IF_ERROR(loader.Next().status());
    results["first_batch_seconds"].push_back(Now() - begin);
    std::printf("first batch from position %lld: %.4f s\n",
                static_cast<long long>(position), Now() - begin);
  }
  results["peak_megabytes"] = PeakMegabytes();
  std::printf("peak memory so far: %.0f MiB\n", PeakMegabytes());
  return absl::OkStatus();
}

absl::Status Measure(const std::string& folder, nlohmann::json& results) {
  const int64_t seq_len = absl::GetFlag(FLAGS_seq_len);
  const double seconds = absl::GetFlag(FLAGS_seconds);
  const double rate = absl::GetFlag(FLAGS_train_tokens_per_second);
  const double begin = Now();
  CUBIT_ASSIGN_OR_RETURN(const auto dataset,
                         TokenDataset::Open({folder}, "train", seq_len));
  results["open_seconds"] = Now() - begin;
  results["tokens"] = dataset->info().num_tokens;
  results["seq_len"] = seq_len;
  results["micro_batch_size"] = absl::GetFlag(FLAGS_micro_batch_size);
  std::printf("%lld tokens, opened in %.4f s\n",
              static_cast<long long>(dataset->info().num_tokens),
              Now() - begin);
  CUBIT_RETURN_IF_ERROR(MeasureSeeks(*dataset, results));
  for (const bool shuffle : {false, true}) {
    CUBIT_ASSIGN_OR_RETURN(const Figures alone,
                           Consume(*dataset, shuffle, seconds, 0));
    const std::string name = shuffle ? "shuffled" : "in_order";
    results[name + "_tokens_per_second"] = alone.tokens_per_second;
    results[name + "_share_of_need"] = rate / alone.tokens_per_second;
    std::printf(
        "%-9s %10.0f tokens/s, %6.1f MB/s; a training step at %.0f "
        "tokens/s needs %.2f %% of it\n",
        name.c_str(), alone.tokens_per_second,
        alone.tokens_per_second * 2 / 1e6, rate,
        100 * rate / alone.tokens_per_second);
  }
  const double step_seconds =
      static_cast<double>(absl::GetFlag(FLAGS_micro_batch_size) * seq_len) /
      rate;
  CUBIT_ASSIGN_OR_RETURN(
      const Figures beside,
      Consume(*dataset, /*shuffle=*/true, seconds, step_seconds));
  const double wait = beside.wait_seconds / static_cast<double>(beside.batches);
  results["step_seconds"] = step_seconds;
  results["wait_seconds_per_step"] = wait;
  std::printf("beside steps of %.4f s: %.6f s of waiting a step, %.3f %%\n",
              step_seconds, wait, 100 * wait / step_seconds);
  return absl::OkStatus();
}

absl::Status Run() {
  if (const std::string sparse = absl::GetFlag(FLAGS_make_sparse);
      !sparse.empty()) {
    CUBIT_RETURN_IF_ERROR(FileSystem::Posix().CreateFolders(sparse));
    return WriteSparseDataset(sparse, absl::GetFlag(FLAGS_sparse_shards),
                              absl::GetFlag(FLAGS_tokens));
  }
  std::string folder = absl::GetFlag(FLAGS_data);
  std::string scratch;
  // Only what was made here is removed.
  const auto remove = absl::MakeCleanup([&scratch] {
    if (!scratch.empty()) FileSystem::Posix().Remove(scratch).IgnoreError();
  });
  if (folder.empty()) {
    std::error_code error;
    std::string pattern =
        (std::filesystem::temp_directory_path(error) / "cubit_loader_XXXXXX")
            .string();
    if (mkdtemp(pattern.data()) == nullptr) {
      return absl::UnavailableError(
          absl::StrCat(pattern, ": cannot create; set TMPDIR or --data"));
    }
    folder = scratch = pattern;
    CUBIT_RETURN_IF_ERROR(
        WriteRandomDataset(folder, absl::GetFlag(FLAGS_tokens)));
  }
  nlohmann::json results = {{"benchmark", "loader"}};
  CUBIT_RETURN_IF_ERROR(Measure(folder, results));
  return WriteJson(absl::GetFlag(FLAGS_json), results);
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::Run());
}
