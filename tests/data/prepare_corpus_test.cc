// SPDX-License-Identifier: Apache-2.0
//
// Real text through the whole preparation, against tokens made by tiktoken.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "data/dataset_index.h"
#include "data/prepare.h"
#include "data/split_rule.h"
#include "data/token_dataset.h"
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

}  // namespace
}  // namespace cubit
