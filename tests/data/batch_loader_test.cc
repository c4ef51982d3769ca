// SPDX-License-Identifier: Apache-2.0

#include "data/batch_loader.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

#include "data/sample_order.h"
#include "ops/cross_entropy.h"
#include "tests/data/shard_files.h"

namespace cubit {
namespace {

constexpr int64_t kSeqLen = 16;
constexpr int32_t kEot = 256;

class BatchLoaderTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = ScratchFolder("");
    documents_ = RandomDocuments(11, 80, 30, 257);
    documents_[40] = {77, 78, 79};
    WriteDataset(folder_, 257,
                 {{"train", {documents_.begin(), documents_.begin() + 40}},
                  {"train", {documents_.begin() + 40, documents_.end()}}});
    dataset_ = Open();
    num_samples_ = dataset_->info().num_samples;
  }

  std::unique_ptr<TokenDataset> Open() {
    auto dataset = TokenDataset::Open({folder_}, "train", kSeqLen);
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    return *std::move(dataset);
  }

  static BatchLoaderOptions Options(int64_t micro_batch_size) {
    BatchLoaderOptions options;
    options.micro_batch_size = micro_batch_size;
    options.stride = micro_batch_size;
    options.seq_len = kSeqLen;
    options.shuffle_seed = 21;
    return options;
  }

  // The samples that a loader gives, row by row, by their inputs.
  static std::vector<std::vector<int32_t>> Rows(BatchLoader& loader,
                                                int64_t batches) {
    std::vector<std::vector<int32_t>> rows;
    for (int64_t n = 0; n < batches; ++n) {
      const auto batch = loader.Next();
      EXPECT_TRUE(batch.ok()) << batch.status();
      for (auto at = batch->inputs.begin(); at != batch->inputs.end();
           at += kSeqLen) {
        rows.emplace_back(at, at + kSeqLen);
      }
    }
    return rows;
  }

  std::vector<int32_t> Sample(int64_t index) {
    const std::vector<int32_t> stream = TokenStream(documents_, kEot);
    const auto begin = stream.begin() + index * kSeqLen;
    return {begin, begin + kSeqLen + 1};
  }

  std::string folder_;
  std::vector<std::vector<int32_t>> documents_;
  std::unique_ptr<TokenDataset> dataset_;
  int64_t num_samples_ = 0;
};

TEST_F(BatchLoaderTest, GivesInputsTargetsAndSegmentsInTheOrderOfSamples) {
  BatchLoader loader(dataset_.get(), Options(3));
  const SampleOrder order(21, num_samples_);
  int64_t position = 0;
  // Into the third epoch.
  for (int64_t n = 0; n < num_samples_; ++n) {
    const auto batch = loader.Next();
    ASSERT_TRUE(batch.ok()) << batch.status();
    EXPECT_EQ(batch->valid_tokens, 3 * kSeqLen);
    for (int64_t row = 0; row < 3; ++row, ++position) {
      const std::vector<int32_t> sample = Sample(order.SampleAt(position));
      int32_t segment = 0;
      for (int64_t t = 0; t < kSeqLen; ++t) {
        const size_t at = static_cast<size_t>(row * kSeqLen + t);
        const size_t i = static_cast<size_t>(t);
        if (t > 0 && sample[i] == kEot) ++segment;
        ASSERT_EQ(batch->inputs[at], sample[i]);
        ASSERT_EQ(batch->targets[at], sample[i + 1]);
        ASSERT_EQ(batch->segment_ids[at], segment);
      }
    }
  }
}

TEST_F(BatchLoaderTest, ReadsInStreamOrderWithoutShuffling) {
  BatchLoaderOptions options = Options(1);
  options.shuffle = false;
  BatchLoader loader(dataset_.get(), options);
  const auto rows = Rows(loader, num_samples_ + 2);
  for (int64_t i = 0; i < num_samples_ + 2; ++i) {
    std::vector<int32_t> sample = Sample(i % num_samples_);
    sample.pop_back();
    EXPECT_EQ(rows[static_cast<size_t>(i)], sample);
  }
}

TEST_F(BatchLoaderTest, MasksTargetsThatBeginAnotherDocument) {
  BatchLoaderOptions options = Options(4);
  options.mask_across_documents = true;
  BatchLoader loader(dataset_.get(), options);
  int64_t masked = 0;
  for (int64_t n = 0; n < 10; ++n) {
    const auto batch = loader.Next();
    ASSERT_TRUE(batch.ok());
    int64_t valid = 0;
    for (size_t i = 0; i < batch->targets.size(); ++i) {
      const bool last = (i + 1) % kSeqLen == 0;
      if (batch->targets[i] == kIgnoredTarget) {
        ++masked;
        EXPECT_TRUE(last || batch->inputs[i + 1] == kEot);
      } else {
        ++valid;
        EXPECT_NE(batch->targets[i], kEot);
        EXPECT_TRUE(last || batch->inputs[i + 1] == batch->targets[i]);
      }
    }
    EXPECT_EQ(batch->valid_tokens, valid);
  }
  EXPECT_GT(masked, 0);
}

// Two data-parallel ranks, and a loader that starts in the middle, see what one
// loader sees: nothing twice, nothing lost.
TEST_F(BatchLoaderTest, LayoutsAndResumingGiveTheSameSamples) {
  BatchLoader whole(dataset_.get(), Options(4));
  const auto wanted = Rows(whole, 12);
  for (const int64_t resume_at : {0, 5}) {
    std::vector<std::vector<int32_t>> found(48);
    for (int64_t rank = 0; rank < 2; ++rank) {
      const auto dataset = Open();
      BatchLoaderOptions options = Options(2);
      options.stride = 4;
      options.first_position = resume_at * 4 + rank * 2;
      BatchLoader loader(dataset.get(), options);
      const auto rows = Rows(loader, 12 - resume_at);
      for (size_t i = 0; i < rows.size(); ++i) {
        const size_t step = i / 2 + static_cast<size_t>(resume_at);
        found[step * 4 + static_cast<size_t>(rank) * 2 + i % 2] = rows[i];
      }
    }
    for (size_t i = static_cast<size_t>(resume_at) * 4; i < found.size(); ++i) {
      EXPECT_EQ(found[i], wanted[i]) << i;
    }
  }
}

TEST_F(BatchLoaderTest, StopsAtAnyMoment) {
  for (int n = 0; n < 40; ++n) {
    BatchLoaderOptions options = Options(1 + n % 3);
    options.prefetch = 1 + n % 5;
    BatchLoader loader(dataset_.get(), options);
    for (int i = 0; i < n % 4; ++i) EXPECT_TRUE(loader.Next().ok());
    EXPECT_GE(loader.wait_seconds(), 0);
  }
}

TEST_F(BatchLoaderTest, GivesTheBatchesBeforeAnErrorAndThenTheErrorForEver) {
  // The second shard is damaged after opening; its first use is the error.
  const std::string path = folder_ + "/shard_00001.h5";
  std::string contents = FileContents(path);
  const std::string begin = {'\0', '\1', 77, '\0', 78, '\0', 79, '\0'};
  contents[contents.find(begin)] ^= 1;
  SetFileContents(path, contents);
  BatchLoaderOptions options = Options(1);
  options.shuffle = false;
  BatchLoader loader(dataset_.get(), options);
  int64_t good = 0;
  absl::StatusOr<Batch> batch = loader.Next();
  for (; batch.ok(); batch = loader.Next()) ++good;
  int64_t first_shard_tokens = 0;
  for (int i = 0; i < 40; ++i) {
    first_shard_tokens +=
        1 + static_cast<int64_t>(documents_[static_cast<size_t>(i)].size());
  }
  EXPECT_EQ(good, (first_shard_tokens - 1) / kSeqLen);
  for (int repeat = 0; repeat < 3; ++repeat) {
    EXPECT_EQ(batch.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_TRUE(absl::StrContains(batch.status().message(), path));
    batch = loader.Next();
  }
}

}  // namespace
}  // namespace cubit
