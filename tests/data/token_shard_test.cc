// SPDX-License-Identifier: Apache-2.0

#include "data/token_shard.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "runtime/digest.h"
#include "tests/data/shard_files.h"
#include "tests/testing/fault_file_system.h"

namespace cubit {
namespace {

using Documents = std::vector<std::vector<int32_t>>;

std::vector<int32_t> ReadAll(TokenShard& shard) {
  std::vector<int32_t> tokens(static_cast<size_t>(shard.info().num_tokens));
  const absl::Status status =
      shard.ReadTokens(0, shard.info().num_tokens, tokens.data());
  EXPECT_TRUE(status.ok()) << status;
  return tokens;
}

TokenShard OpenShard(const std::string& path) {
  auto shard = TokenShard::Open(path, 1 << 20);
  EXPECT_TRUE(shard.ok()) << shard.status();
  return *std::move(shard);
}

class TokenShardSizes : public testing::TestWithParam<int64_t> {};

TEST_P(TokenShardSizes, ReturnsWhatWasWritten) {
  const int64_t vocab_size = GetParam();
  const int32_t eot_id = static_cast<int32_t>(vocab_size - 1);
  const std::string path = ScratchFolder("") + "/shard_00000.h5";
  // More than a chunk of either width.
  const Documents documents = RandomDocuments(7, 900, 2000, vocab_size);
  const std::vector<int32_t> stream = TokenStream(documents, eot_id);
  ASSERT_GT(stream.size(), 600000u);
  const WrittenShard written =
      WriteShard(path, ShardInfo("train", vocab_size), documents);
  EXPECT_EQ(written.bytes, static_cast<int64_t>(FileContents(path).size()));
  EXPECT_EQ(written.xxh3_128,
            Xxh3_128Hex(FileContents(path).data(), FileContents(path).size()));

  TokenShard shard = OpenShard(path);
  EXPECT_EQ(ReadAll(shard), stream);
  EXPECT_TRUE(shard.Verify().ok()) << shard.Verify();
  const TokenShardInfo& info = shard.info();
  EXPECT_EQ(info.tokenizer, "made up");
  EXPECT_EQ(info.tokenizer_sha256, std::string(64, 'a'));
  EXPECT_EQ(info.vocab_size, vocab_size);
  EXPECT_EQ(info.eot_id, eot_id);
  EXPECT_EQ(info.split, "train");
  EXPECT_EQ(info.source, "a test");
  EXPECT_EQ(info.num_tokens, static_cast<int64_t>(stream.size()));
  EXPECT_EQ(info.num_documents, 900);
  EXPECT_EQ(info.max_token_id, eot_id);
  EXPECT_EQ(info.tokens_xxh3_128, written.info.tokens_xxh3_128);
  EXPECT_EQ(info.created, "2025-01-31T12:00:00Z");
  EXPECT_EQ(info.writer, "cubit test");

  int64_t begin = 0;
  for (int64_t d = 0; d < 900; ++d) {
    const auto range = shard.DocumentRange(d);
    ASSERT_TRUE(range.ok()) << range.status();
    EXPECT_EQ(range->begin, begin);
    begin += 1 + static_cast<int64_t>(documents[static_cast<size_t>(d)].size());
    EXPECT_EQ(range->end, begin);
  }
  // Ranges that cross a chunk, and the ends.
  for (const int64_t at :
       {int64_t{0}, int64_t{262140}, int64_t{524280}, info.num_tokens - 20}) {
    std::vector<int32_t> piece(20);
    ASSERT_TRUE(shard.ReadTokens(at, 20, piece.data()).ok());
    EXPECT_EQ(piece, std::vector<int32_t>(stream.begin() + at,
                                          stream.begin() + at + 20));
  }
}

// 65536 is the last vocabulary whose ids fit uint16.
INSTANTIATE_TEST_SUITE_P(Vocabularies, TokenShardSizes,
                         testing::Values(257, 50257, 65536, 65537, 200000));

TEST(TokenShard, HoldsOneEmptyDocument) {
  const std::string path = ScratchFolder("") + "/a.h5";
  WriteShard(path, ShardInfo("train", 257), {{}});
  TokenShard shard = OpenShard(path);
  EXPECT_EQ(ReadAll(shard), std::vector<int32_t>{256});
  EXPECT_TRUE(shard.Verify().ok());
}

TEST(TokenShard, IsTheSameBytesEveryTime) {
  const std::string folder = ScratchFolder("");
  const Documents documents = RandomDocuments(3, 50, 300, 50257);
  TokenShardInfo info = ShardInfo("train", 50257);
  WriteShard(folder + "/a.h5", info, documents);
  // Other allocations in between: no stale memory may reach the file.
  WriteShard(folder + "/x.h5", info, RandomDocuments(4, 200, 3000, 50257));
  WriteShard(folder + "/b.h5", info, documents);
  EXPECT_EQ(FileContents(folder + "/a.h5"), FileContents(folder + "/b.h5"));
  // Memory of a larger and of a smaller file, used again.
  ShardImage image;
  for (const char* name : {"x.h5", "d.h5", "y.h5", "e.h5"}) {
    TokenShardBuilder builder(info);
    for (const auto& ids : *name == 'x'   ? RandomDocuments(5, 200, 3000, 50257)
                           : *name == 'y' ? RandomDocuments(6, 2, 30, 50257)
                                          : documents) {
      builder.AddDocument(ids);
    }
    const std::string path = absl::StrCat(folder, "/", name);
    auto made = builder.MakeImage(std::move(image.file));
    ASSERT_TRUE(made.ok()) << made.status();
    image = *std::move(made);
    ASSERT_TRUE(WriteShardImage(FileSystem::Posix(), image, path).ok());
  }
  EXPECT_EQ(FileContents(folder + "/a.h5"), FileContents(folder + "/d.h5"));
  EXPECT_EQ(FileContents(folder + "/a.h5"), FileContents(folder + "/e.h5"));
  info.created = "2026-01-31T12:00:00Z";
  WriteShard(folder + "/c.h5", info, documents);
  EXPECT_NE(FileContents(folder + "/a.h5"), FileContents(folder + "/c.h5"));
}

TEST(TokenShard, BuilderStartsAnewAfterWriting) {
  const std::string folder = ScratchFolder("");
  TokenShardBuilder builder(ShardInfo("train", 257));
  builder.AddDocument({1, 200});
  ASSERT_TRUE(builder.Write(FileSystem::Posix(), folder + "/a.h5").ok());
  EXPECT_EQ(builder.num_tokens(), 0);
  EXPECT_EQ(builder.num_documents(), 0);
  builder.AddDocument({3});
  ASSERT_TRUE(builder.Write(FileSystem::Posix(), folder + "/b.h5").ok());
  TokenShard shard = OpenShard(folder + "/b.h5");
  EXPECT_EQ(ReadAll(shard), (std::vector<int32_t>{256, 3}));
}

TEST(TokenShardDeathTest, RefusesIdsThatTheTokenizerMustNotGive) {
  TokenShardBuilder builder(ShardInfo("train", 257));
  EXPECT_DEATH(builder.AddDocument({256}), "end of text");
  EXPECT_DEATH(builder.AddDocument({257}), "vocabulary has 257");
  EXPECT_DEATH(builder.AddDocument({-1}), "id -1");
}

// The writer with every call failing once, alone or as the machine stopping:
// the path holds the old shard or the new one, and an error means that the
// caller hears of it.
TEST(TokenShard, EveryFaultLeavesTheOldOrTheNewShard) {
  const Documents before = RandomDocuments(1, 5, 100, 50257);
  const Documents after = RandomDocuments(2, 9, 100, 50257);
  for (const bool crash : {false, true}) {
    const std::string folder = ScratchFolder(crash ? "crash" : "fault");
    const std::string path = folder + "/shard_00000.h5";
    int64_t faults = 0;
    for (int64_t n = 1;; ++n) {
      WriteShard(path, ShardInfo("train", 50257), before);
      FaultPlan plan;
      plan.fail_at = n;
      plan.calls = FaultPlan::Calls::kAll;
      plan.crash = crash;
      FaultFileSystem files(&FileSystem::Posix(), plan);
      TokenShardBuilder builder(ShardInfo("train", 50257));
      for (const auto& document : after) builder.AddDocument(document);
      const auto written = builder.Write(files, path);
      EXPECT_EQ(written.ok(), !files.fault_happened()) << files.failed_call();
      TokenShard shard = OpenShard(path);
      EXPECT_TRUE(shard.Verify().ok()) << files.failed_call();
      const std::vector<int32_t> tokens = ReadAll(shard);
      if (tokens != TokenStream(after, 50256)) {
        EXPECT_EQ(tokens, TokenStream(before, 50256)) << files.failed_call();
        EXPECT_FALSE(written.ok()) << files.failed_call();
      }
      if (!written.ok()) {
        EXPECT_TRUE(absl::StrContains(written.status().message(), folder));
        EXPECT_EQ(builder.num_documents(), 9) << "documents are kept";
      }
      if (!crash) {
        EXPECT_FALSE(files.Exists(path + ".tmp")) << files.failed_call();
      }
      if (!files.fault_happened()) break;
      ++faults;
    }
    // Create, Append, Sync, Close, FileSize, Read, Rename, SyncFolder at least.
    EXPECT_GE(faults, 8);
  }
}

// A disk that takes the bytes and returns others.
class LyingFileSystem : public FaultFileSystem {
 public:
  LyingFileSystem() : FaultFileSystem(&FileSystem::Posix(), FaultPlan()) {}
  absl::Status Read(const std::string& path, int64_t offset, int64_t bytes,
                    void* data) override {
    absl::Status status = FaultFileSystem::Read(path, offset, bytes, data);
    static_cast<char*>(data)[bytes / 2] ^= 1;
    return status;
  }
};

TEST(TokenShard, IsReadBackBeforeItCounts) {
  const std::string path = ScratchFolder("") + "/a.h5";
  LyingFileSystem files;
  TokenShardBuilder builder(ShardInfo("train", 257));
  builder.AddDocument({1, 2, 3});
  const auto written = builder.Write(files, path);
  EXPECT_EQ(written.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(absl::StrContains(written.status().message(), "reads back"));
  EXPECT_FALSE(files.Exists(path));
  EXPECT_FALSE(files.Exists(path + ".tmp"));
}

TEST(TokenShard, NamesTruncation) {
  const std::string folder = ScratchFolder("");
  const std::string path = folder + "/a.h5";
  WriteShard(path, ShardInfo("train", 50257),
             RandomDocuments(1, 20, 500, 50257));
  const std::string whole = FileContents(path);
  for (size_t bytes = whole.size() - 1; bytes > 0;
       bytes -= std::min(bytes, bytes <= 100 ? 1 : whole.size() / 50)) {
    ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(bytes)), 0);
    const auto shard = TokenShard::Open(path, 0);
    ASSERT_EQ(shard.status().code(), absl::StatusCode::kDataLoss) << bytes;
    EXPECT_TRUE(absl::StrContains(shard.status().message(), path));
    EXPECT_TRUE(absl::StrContains(shard.status().message(), "truncated"))
        << shard.status();
  }
  SetFileContents(path, whole + "x");
  EXPECT_TRUE(absl::StrContains(TokenShard::Open(path, 0).status().message(),
                                "extended"));
}

// One bit at a time over the whole file: an error, or the very same tokens and
// borders.
TEST(TokenShard, NeverReadsWrongTokensFromAFlippedBit) {
  const std::string path = ScratchFolder("") + "/a.h5";
  const Documents documents = RandomDocuments(1, 12, 80, 50257);
  WriteShard(path, ShardInfo("train", 50257), documents);
  const std::vector<int32_t> stream = TokenStream(documents, 50256);
  const std::string whole = FileContents(path);
  int detected = 0;
  int found_by_verify = 0;
  int harmless = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    const char bit = static_cast<char>(1 << (at % 8));
    FlipBits(path, at, bit);
    auto shard = TokenShard::Open(path, 0);
    std::vector<int32_t> tokens(stream.size());
    const absl::Status status =
        !shard.ok()
            ? shard.status()
            : shard->ReadTokens(0, shard->info().num_tokens, tokens.data());
    const bool verified = shard.ok() && shard->Verify().ok();
    FlipBits(path, at, bit);
    if (!status.ok()) {
      ++detected;
      EXPECT_TRUE(absl::StrContains(status.message(), path)) << status;
      EXPECT_FALSE(verified);
      continue;
    }
    ASSERT_EQ(tokens, stream) << "byte " << at << " changed tokens silently";
    (verified ? harmless : found_by_verify) += 1;
  }
  // Tokens and their checksum are read, offsets are verified; the rest is
  // metadata (found on opening) and bytes that nothing uses.
  EXPECT_GE(detected, static_cast<int>(stream.size() * 2 + 4));
  EXPECT_EQ(found_by_verify, 13 * 8 + 4);
  std::printf("of %zu bits: %d found on reading, %d by Verify, %d harmless\n",
              whole.size(), detected, found_by_verify, harmless);
}

TEST(TokenShard, NamesTheOffsetOfADamagedChunk) {
  const std::string path = ScratchFolder("") + "/a.h5";
  // Chunks of 65536.
  WriteShard(path, ShardInfo("train", 50257),
             {std::vector<int32_t>(1400000, 12345)});
  std::string contents = FileContents(path);
  // They lie one after the other, 131076 bytes each with the checksum; the
  // bytes are a known pattern.
  const std::string pattern = "\x39\x30\x39\x30\x39\x30\x39\x30";
  contents[contents.find(pattern) + 1500000] ^= 4;
  SetFileContents(path, contents);
  TokenShard shard = OpenShard(path);
  std::vector<int32_t> tokens(100);
  EXPECT_TRUE(shard.ReadTokens(500000, 100, tokens.data()).ok());
  const absl::Status status = shard.ReadTokens(750000, 100, tokens.data());
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(absl::StrContains(
      status.message(), path + ": /tokens: cannot read 100 elements at offset "
                               "750000 (chunk 11 on)"))
      << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "Fletcher32")) << status;
  EXPECT_FALSE(shard.Verify().ok());
}

}  // namespace
}  // namespace cubit
