// SPDX-License-Identifier: Apache-2.0
//
// Real text through the whole preparation, against tokens made by tiktoken.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "data/dataset_index.h"
#include "data/parquet_file.h"
#include "data/prepare.h"
#include "data/split_rule.h"
#include "data/token_dataset.h"
#include "tests/data/compress.h"
#include "tests/data/parquet_files.h"
#include "tests/data/shard_files.h"
#include "tests/data/shared_data.h"

namespace cubit {
namespace {

constexpr int32_t kEot = 50256;

class FinewebEdu : public testing::Test {
 protected:
  void SetUp() override {
    CUBIT_SKIP_WITHOUT_SHARED_DATA();
    const std::string bytes =
        ReadSharedFile("gpt2-bpe/fineweb_edu_head.gpt2.u16le.xz");
    std::vector<uint16_t> ids(bytes.size() / 2);
    std::memcpy(ids.data(), bytes.data(), 2 * ids.size());
    stream_.assign(ids.begin(), ids.end());
    ASSERT_EQ(stream_.size(), 215805u);
    auto tokenizer = LoadTokenizer(SharedPath("gpt2-bpe"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  // Prepares the sample; the folder.
  std::string Prepared(const std::string& name, int threads,
                       double validation_fraction, int64_t shard_tokens) {
    PrepareOptions options;
    options.inputs = {
        SharedPath("fineweb-edu-sample/fineweb_edu_head.jsonl.xz")};
    options.out = ScratchFolder(name);
    options.threads = threads;
    options.validation_fraction = validation_fraction;
    options.shard_tokens = shard_tokens;
    options.created = "2025-01-31T12:00:00Z";
    const auto report = Prepare(options, *tokenizer_, UnsyncedFiles());
    EXPECT_TRUE(report.ok()) << report.status();
    return options.out;
  }

  static std::vector<int32_t> ReadStream(const std::string& folder,
                                         const std::string& split) {
    std::vector<int32_t> stream;
    const auto index = ReadDatasetIndex(FileSystem::Posix(), folder);
    EXPECT_TRUE(index.ok()) << index.status();
    for (const ShardEntry& entry : index->shards) {
      if (entry.split != split) continue;
      auto shard = TokenShard::Open(JoinPath(folder, entry.file), 0);
      EXPECT_TRUE(shard.ok() && shard->Verify().ok());
      const size_t begin = stream.size();
      stream.resize(begin + static_cast<size_t>(entry.tokens));
      EXPECT_TRUE(
          shard->ReadTokens(0, entry.tokens, stream.data() + begin).ok());
    }
    return stream;
  }

  std::vector<int32_t> stream_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(FinewebEdu, EqualsTheReferenceStreamWithoutValidation) {
  const std::string folder = Prepared("", 2, 0, int64_t{32} << 20);
  EXPECT_EQ(ReadStream(folder, "train"), stream_);
  // And as samples.
  auto dataset = TokenDataset::Open({folder}, "train", 1024);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ((*dataset)->info().num_samples, 210);
  EXPECT_EQ((*dataset)->info().num_documents, 277);
  std::vector<int32_t> tokens(1025);
  std::vector<int32_t> segments(1024);
  for (int64_t i = 0; i < 210; ++i) {
    ASSERT_TRUE((*dataset)->ReadSample(i, tokens.data(), segments.data()).ok());
    ASSERT_TRUE(
        std::equal(tokens.begin(), tokens.end(), stream_.begin() + i * 1024));
  }
}

TEST_F(FinewebEdu, SplitsPartitionTheReferenceDocuments) {
  const std::string folder = Prepared("", 2, 0.01, 30000);
  const SplitRule rule(0.01);
  std::vector<int32_t> train;
  std::vector<int32_t> validation;
  int64_t document = -1;
  for (const int32_t id : stream_) {
    if (id == kEot) ++document;
    (rule.IsValidation(document) ? validation : train).push_back(id);
  }
  EXPECT_FALSE(validation.empty());
  EXPECT_EQ(ReadStream(folder, "train"), train);
  EXPECT_EQ(ReadStream(folder, "validation"), validation);
}

TEST_F(FinewebEdu, TwiceAndWithOneOrTwoThreadsGivesIdenticalFiles) {
  const std::string first = Prepared("first", 1, 0.01, 30000);
  const auto index = ReadDatasetIndex(FileSystem::Posix(), first);
  ASSERT_TRUE(index.ok()) << index.status();
  ASSERT_GE(index->shards.size(), 8u);
  for (const int threads : {1, 2}) {
    const std::string again =
        Prepared(threads == 1 ? "again" : "threads", threads, 0.01, 30000);
    std::vector<std::string> names = {kIndexName, "prepare.json"};
    for (const ShardEntry& entry : index->shards) names.push_back(entry.file);
    for (const std::string& name : names) {
      EXPECT_EQ(FileContents(JoinPath(again, name)),
                FileContents(JoinPath(first, name)))
          << name;
    }
  }
  // The copy of the tokenizer is the tokenizer.
  const auto copy = LoadTokenizer(JoinPath(first, kTokenizerFolder));
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ((*copy)->sha256(), tokenizer_->sha256());
}

// FineWeb-Edu's two forms, parquet with its columns and lines of JSON, and
// compressions of the second.
TEST_F(FinewebEdu, EveryFormOfTheSameDocumentsGivesTheSameShards) {
  const std::string folder = ScratchFolder("inputs");
  const std::string lines =
      ReadSharedFile("fineweb-edu-sample/fineweb_edu_head.jsonl.xz");
  std::vector<std::string> inputs = {
      folder + "/a.jsonl", folder + "/a.jsonl.gz", folder + "/a.jsonl.zst"};
  SetFileContents(inputs[0], lines);
  SetFileContents(inputs[1], Compress(Compression::kGzip, lines));
  SetFileContents(inputs[2], Compress(Compression::kZstd, lines));
  if (ParquetIsSupported()) {
    ParquetRecipe recipe;
    recipe.group_rows = 50;
    for (const std::string& line :
         ReadSharedLines("fineweb-edu-sample/fineweb_edu_head.jsonl.xz")) {
      recipe.rows.push_back({nlohmann::json::parse(line)["text"], 0});
    }
    inputs.push_back(folder + "/a.parquet");
    WriteParquet(inputs.back(), recipe);
  }
  PrepareOptions options;
  options.threads = 2;
  options.shard_tokens = 30000;
  options.source = "FineWeb-Edu";
  options.created = "2025-01-31T12:00:00Z";
  std::map<std::string, std::string> first;
  for (const std::string& input : inputs) {
    options.inputs = {input};
    options.out = ScratchFolder("out");
    ASSERT_TRUE(Prepare(options, *tokenizer_, UnsyncedFiles()).ok()) << input;
    std::map<std::string, std::string> shards;
    const auto names = FileSystem::Posix().List(options.out);
    ASSERT_TRUE(names.ok());
    for (const std::string& name : *names) {
      if (!IsShardName(name)) continue;
      shards[name] = FileContents(JoinPath(options.out, name));
    }
    EXPECT_GE(shards.size(), 8u);
    if (first.empty()) first = shards;
    EXPECT_EQ(shards, first) << input;
  }
  if (!ParquetIsSupported()) {
    GTEST_SKIP() << "skipped: the parquet form needs Apache Arrow "
                    "(./bazelw install_arrow)";
  }
}

// As data/fineweb-sample/SOURCE.md has it from tiktoken.
TEST_F(FinewebEdu, TheStatedTokenCountsAreThoseOfTheSample) {
  PrepareOptions options;
  options.inputs = {SharedPath("fineweb-sample/fineweb_300.jsonl.xz")};
  options.out = ScratchFolder("");
  const auto report = Prepare(options, *tokenizer_, UnsyncedFiles());
  ASSERT_TRUE(report.ok()) << report.status();
  const TokenCountCheck& counts = report->token_counts;
  EXPECT_EQ(counts.documents, 300);
  EXPECT_EQ(counts.differing, 9);
  std::vector<int64_t> documents;
  for (const auto& difference : counts.first) {
    documents.push_back(difference.document);
    EXPECT_GE(std::abs(difference.counted - difference.stated), 1);
    EXPECT_LE(std::abs(difference.counted - difference.stated), 7);
  }
  EXPECT_EQ(documents,
            (std::vector<int64_t>{41, 54, 70, 108, 112, 154, 214, 234, 256}));
}

}  // namespace
}  // namespace cubit
