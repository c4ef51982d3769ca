// SPDX-License-Identifier: Apache-2.0

#include "data/prepare.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "data/dataset_index.h"
#include "data/token_dataset.h"
#include "tests/data/fake_tokenizer.h"
#include "tests/data/prepare_fixture.h"
#include "tests/data/shard_files.h"
#include "tests/testing/fault_file_system.h"

namespace cubit {
namespace {

TEST_F(PrepareTest, WritesEveryDocumentOnceInItsSplit) {
  const auto report = Run();
  ASSERT_TRUE(report.ok()) << report.status();
  ExpectRightTexts();
  const auto index = ReadDatasetIndex(posix_, options_.out);
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ(index->tokenizer, "fake1");
  EXPECT_EQ(index->tokenizer_sha256, tokenizer_.sha256());
  EXPECT_EQ(index->source, "in_0.jsonl, in_1.jsonl, in_2.jsonl");
  EXPECT_GE(index->shards.size(), 5u);
  int64_t tokens = 0;
  int64_t text_bytes = 0;
  for (const ShardEntry& shard : index->shards) {
    EXPECT_LE(shard.tokens, 250);
    tokens += shard.tokens;
    const std::string path = Out(shard.file);
    const auto digest = FileDigest(posix_, path);
    ASSERT_TRUE(digest.ok());
    EXPECT_EQ(shard.xxh3_128, *digest);
  }
  for (const auto& text : texts_) {
    text_bytes += static_cast<int64_t>(text.size());
  }
  EXPECT_FALSE(report->was_complete);
  EXPECT_EQ(report->reused_shards, 0);
  EXPECT_EQ(report->shards, static_cast<int64_t>(index->shards.size()));
  EXPECT_EQ(report->train_documents + report->validation_documents, 27);
  EXPECT_EQ(report->validation_documents, 5);
  EXPECT_EQ(report->train_tokens + report->validation_tokens, tokens);
  EXPECT_EQ(tokens, text_bytes + 27);
  EXPECT_EQ(report->text_bytes, text_bytes);
  EXPECT_EQ(FileContents(Out("tokenizer/fake.txt")), "fake1");
  auto dataset = TokenDataset::Open({options_.out}, "validation", 8);
  EXPECT_TRUE(dataset.ok()) << dataset.status();
}

TEST_F(PrepareTest, IsTheSameForAnyNumberOfThreads) {
  const auto wanted = Wanted();
  for (const int threads : {2, 3}) {
    options_.threads = threads;
    options_.out = absl::StrCat(folder_, "/threads", threads);
    ASSERT_TRUE(Run().ok());
    EXPECT_EQ(Snapshot(options_.out), wanted);
  }
}

TEST_F(PrepareTest, WritesWideTokens) {
  tokenizer_ = FakeTokenizer(300);
  ASSERT_TRUE(Run().ok());
  ExpectRightTexts();
}

TEST_F(PrepareTest, GivesALongDocumentAShardOfItsOwn) {
  options_.shard_tokens = 1;
  const auto report = Run();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->shards, 27);
  ExpectRightTexts();
}

TEST_F(PrepareTest, WithoutValidationThereIsOneStream) {
  options_.validation_fraction = 0;
  const auto report = Run();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->validation_documents, 0);
  EXPECT_EQ(ReadTexts(options_.out, "train", tokenizer_), texts_);
}

TEST_F(PrepareTest, CutsTheEndOfASingleDocument) {
  SetFileContents(folder_ + "/one.txt", "0123456789abcdefghij");
  options_.inputs = {folder_ + "/one.txt"};
  options_.validation_fraction = 0.25;
  const auto report = Run();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(ReadTexts(options_.out, "train", tokenizer_),
            std::vector<std::string>{"0123456789abcde"});
  EXPECT_EQ(ReadTexts(options_.out, "validation", tokenizer_),
            std::vector<std::string>{"fghij"});
  SetFileContents(folder_ + "/one.txt", "x");
  options_.out = folder_ + "/short";
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(ReadTexts(options_.out, "train", tokenizer_),
            std::vector<std::string>{"x"});
}

TEST_F(PrepareTest, DoesNothingWhenComplete) {
  ASSERT_TRUE(Run().ok());
  const auto before = Snapshot(options_.out);
  FaultFileSystem files(&posix_, FaultPlan());
  const auto report = Run(files);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->was_complete);
  EXPECT_EQ(report->train_documents + report->validation_documents, 27);
  EXPECT_EQ(files.calls(), 1) << "only the folder is made sure of";
  EXPECT_EQ(Snapshot(options_.out), before);
}

TEST_F(PrepareTest, RecognisesInputsThatWereTouchedOrMoved) {
  ASSERT_TRUE(Run().ok());
  const std::string moved = folder_ + "/moved";
  ASSERT_TRUE(posix_.CreateFolders(moved).ok());
  for (int file = 0; file < 3; ++file) {
    SetFileContents(absl::StrCat(moved, "/in_", file, ".jsonl"),
                    FileContents(Input(file)));
    const timespec times[2] = {{1000, 0}, {1000 + file, 0}};
    ASSERT_EQ(
        utimensat(AT_FDCWD, absl::StrCat(moved, "/in_", file, ".jsonl").c_str(),
                  times, 0),
        0);
  }
  options_.inputs = {moved};
  const auto report = Run();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->was_complete);
}

TEST_F(PrepareTest, RefusesAFolderWithAnotherDataSet) {
  ASSERT_TRUE(Run().ok());
  const PrepareOptions good = options_;
  options_.shard_tokens = 251;
  ExpectRefused("holds another data set: shard_tokens 250 there, 251 here");
  options_ = good;
  options_.validation_fraction = 0.25;
  ExpectRefused("validation_fraction 0.2 there, 0.25 here");
  options_ = good;
  options_.source = "mine";
  ExpectRefused("\"mine\" here");
  options_ = good;
  options_.inputs.pop_back();
  ExpectRefused("number of inputs 3 there, 2 here");
  options_ = good;
  tokenizer_ = FakeTokenizer(2);
  ExpectRefused("tokenizer fake1 there, fake2 here");
  tokenizer_ = FakeTokenizer(1);
  std::string text = FileContents(Input(1));
  text[20] = 'X';
  SetFileContents(Input(1), text);
  ExpectRefused(absl::StrCat("contents of ", Input(1)));
  SetFileContents(Input(1), text + text);
  ExpectRefused(absl::StrCat("contents of ", Input(1)));
  ASSERT_TRUE(posix_.Remove(Out("prepare.json")).ok());
  ExpectRefused("no prepare.json");
}

TEST_F(PrepareTest, SaysWhenACompleteFolderIsDamaged) {
  ASSERT_TRUE(Run().ok());
  ASSERT_TRUE(posix_.Remove(Out("shard_00001.h5")).ok());
  ExpectRefused("shard_00001.h5: is missing");
  SetFileContents(Out("prepare.json"), "{}");
  ExpectRefused("prepare.json: is not the cubit preparation record");
}

TEST_F(PrepareTest, RefusesFoldersOfOthers) {
  ASSERT_TRUE(posix_.CreateFolders(Out("tokenizer")).ok());
  ExpectRefused("holds shards or a tokenizer, but no prepare.json");
  ASSERT_TRUE(posix_.Remove(Out("tokenizer")).ok());
  SetFileContents(Out("shard_00000.h5"), "mine");
  ExpectRefused("holds shards or a tokenizer, but no prepare.json");
  ASSERT_TRUE(posix_.Remove(Out("shard_00000.h5")).ok());
  SetFileContents(Out("notes"), "mine");
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(FileContents(Out("notes")), "mine");
}

TEST_F(PrepareTest, RefusesASecondPreparationAtTheSameTime) {
  ASSERT_TRUE(posix_.CreateFolders(options_.out).ok());
  const int fd = open(options_.out.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(flock(fd, LOCK_EX | LOCK_NB), 0);
  ExpectRefused("another preparation is writing there");
  close(fd);
  EXPECT_TRUE(Run().ok());
}

TEST_F(PrepareTest, WaitsForASecondPreparationOfACache) {
  ASSERT_TRUE(posix_.CreateFolders(options_.out).ok());
  const int fd = open(options_.out.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(flock(fd, LOCK_EX | LOCK_NB), 0);
  options_.wait_for_others = true;
  std::thread other([&] { EXPECT_TRUE(Run().ok()); });
  // Long enough to reach the lock on most machines; whoever comes late finds
  // it free, which passes as well.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(posix_.Exists(Out("index.json")));
  close(fd);
  other.join();
  EXPECT_TRUE(posix_.Exists(Out("index.json")));
}

TEST_F(PrepareTest, RefusesWrongRequestsAndLeavesNothing) {
  const PrepareOptions good = options_;
  options_.out = "";
  ExpectRefused("--out is missing");
  options_ = good;
  options_.threads = 0;
  ExpectRefused("--threads=0");
  options_ = good;
  options_.shard_tokens = 0;
  ExpectRefused("--shard_tokens=0");
  options_ = good;
  for (const double fraction : {-0.1, 0.6, 0.0 / 0.0}) {
    options_.validation_fraction = fraction;
    ExpectRefused("--validation_fraction=");
  }
  options_ = good;
  options_.source = std::string(5000, 'x');
  ExpectRefused("--source has 5000 bytes");
  options_ = good;
  options_.inputs = {folder_ + "/none.txt"};
  ExpectRefused("none.txt");
  options_.inputs = {};
  ExpectRefused("");
  EXPECT_FALSE(posix_.Exists(good.out));
}

TEST_F(PrepareTest, BadInputLeavesNothing) {
  // Late, so that shards were finished before.
  const std::string good = FileContents(Input(2));
  for (const std::string bad : {"{\"text\": \"\xff\xfe\"}\n", "{\"text\": 1}\n",
                                "{\"text\": \"", "nonsense\n"}) {
    SetFileContents(Input(2), good + bad);
    const auto report = Run();
    ASSERT_FALSE(report.ok()) << bad;
    EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(report.status().message(), Input(2)))
        << report.status();
    EXPECT_FALSE(posix_.Exists(options_.out)) << bad;
  }
  // A folder that was there stays, with what was in it.
  ASSERT_TRUE(posix_.CreateFolders(options_.out).ok());
  SetFileContents(Out("notes"), "mine");
  EXPECT_FALSE(Run().ok());
  EXPECT_EQ(Snapshot(options_.out),
            (std::map<std::string, std::string>{{"notes", "mine"}}));
}

TEST_F(PrepareTest, InputsWithoutTextAreAnError) {
  for (int file = 0; file < 3; ++file) SetFileContents(Input(file), "\n");
  const auto report = Run();
  EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(report.status().message(), "no text in 3"))
      << report.status();
  EXPECT_FALSE(posix_.Exists(options_.out));
}

TEST_F(PrepareTest, LeavesOutWhatItWroteInsideTheInputFolder) {
  options_.inputs = {folder_};
  options_.out = folder_;
  // Only .jsonl files lie there; a text file in tokenizer/ is written by us.
  ASSERT_TRUE(!Run().ok());
  options_.out = folder_ + "/deep";
  ASSERT_TRUE(Run().ok());
  const auto report = Run();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->was_complete);
}

}  // namespace
}  // namespace cubit
