// SPDX-License-Identifier: Apache-2.0

#include "data/prepare.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"

#include "data/dataset_index.h"
#include "data/split_rule.h"
#include "data/token_dataset.h"
#include "tests/data/fake_tokenizer.h"
#include "tests/data/shard_files.h"
#include "tests/testing/fault_file_system.h"

namespace cubit {
namespace {

// Every file below a folder, by its path inside.
std::map<std::string, std::string> Snapshot(const std::string& folder) {
  std::map<std::string, std::string> contents;
  FileSystem& files = FileSystem::Posix();
  const auto names = files.List(folder);
  if (!names.ok()) return contents;
  for (const std::string& name : *names) {
    const std::string path = folder + "/" + name;
    if (!files.List(path).ok()) {
      contents[name] = FileContents(path);
      continue;
    }
    for (const auto& [inner, bytes] : Snapshot(path)) {
      contents[name + "/" + inner] = bytes;
    }
  }
  return contents;
}

// The documents of a split, in order.
std::vector<std::string> Texts(const std::string& folder,
                               const std::string& split,
                               const Tokenizer& tokenizer) {
  std::vector<std::string> texts;
  const auto index = ReadDatasetIndex(FileSystem::Posix(), folder);
  EXPECT_TRUE(index.ok()) << index.status();
  for (const ShardEntry& entry : index->shards) {
    if (entry.split != split) continue;
    auto shard = TokenShard::Open(JoinPath(folder, entry.file), 0);
    EXPECT_TRUE(shard.ok()) << shard.status();
    EXPECT_TRUE(CheckShardAgainstIndex(*shard, entry, *index).ok());
    EXPECT_TRUE(shard->Verify().ok()) << shard->Verify();
    for (int64_t d = 0; d < shard->info().num_documents; ++d) {
      const auto range = shard->DocumentRange(d);
      EXPECT_TRUE(range.ok());
      std::vector<int32_t> ids(static_cast<size_t>(range->end - range->begin));
      EXPECT_TRUE(
          shard->ReadTokens(range->begin, range->end - range->begin, ids.data())
              .ok());
      EXPECT_EQ(ids[0], tokenizer.eot_id());
      texts.emplace_back();
      tokenizer.Decode(ids, &texts.back());
    }
  }
  return texts;
}

class PrepareTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = ScratchFolder("");
    for (int file = 0; file < 3; ++file) {
      std::string lines;
      for (int line = 0; line < 9; ++line) {
        texts_.push_back(absl::StrCat(
            "document ", texts_.size(), ": ",
            std::string(static_cast<size_t>(line * 31 % 50), 'x')));
        absl::StrAppend(&lines, "{\"text\": \"", texts_.back(), "\"}\n");
      }
      SetFileContents(Input(file), lines);
      options_.inputs.push_back(Input(file));
    }
    options_.out = folder_ + "/out";
    options_.shard_tokens = 250;
    options_.validation_fraction = 0.2;
    options_.created = "2025-01-31T12:00:00Z";
  }

  std::string Input(int file) {
    return absl::StrCat(folder_, "/in_", file, ".jsonl");
  }
  std::string Out(const std::string& name) { return options_.out + "/" + name; }

  absl::StatusOr<PrepareReport> Run() { return Run(UnsyncedFiles()); }
  absl::StatusOr<PrepareReport> Run(FileSystem& files) {
    return Prepare(options_, tokenizer_, files);
  }
  void ExpectRefused(const std::string& words) {
    const auto before = Snapshot(options_.out);
    const auto report = Run();
    ASSERT_FALSE(report.ok()) << words;
    EXPECT_TRUE(absl::StrContains(report.status().message(), words))
        << report.status();
    EXPECT_EQ(Snapshot(options_.out), before);
  }
  // What the folder must hold in the end, made without any interruption.
  std::map<std::string, std::string> Wanted() {
    PrepareOptions options = options_;
    options.out = folder_ + "/wanted";
    EXPECT_TRUE(FileSystem::Posix().Remove(options.out).ok());
    EXPECT_TRUE(Prepare(options, tokenizer_, UnsyncedFiles()).ok());
    return Snapshot(options.out);
  }
  void ExpectRightTexts() {
    const SplitRule rule(options_.validation_fraction);
    std::vector<std::string> train;
    std::vector<std::string> validation;
    for (size_t d = 0; d < texts_.size(); ++d) {
      (rule.IsValidation(static_cast<int64_t>(d)) ? validation : train)
          .push_back(texts_[d]);
    }
    EXPECT_EQ(Texts(options_.out, "train", tokenizer_), train);
    EXPECT_EQ(Texts(options_.out, "validation", tokenizer_), validation);
  }

  FileSystem& posix_ = FileSystem::Posix();
  std::string folder_;
  std::vector<std::string> texts_;
  PrepareOptions options_;
  FakeTokenizer tokenizer_{1};
};

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
  EXPECT_EQ(Texts(options_.out, "train", tokenizer_), texts_);
}

TEST_F(PrepareTest, CutsTheEndOfASingleDocument) {
  SetFileContents(folder_ + "/one.txt", "0123456789abcdefghij");
  options_.inputs = {folder_ + "/one.txt"};
  options_.validation_fraction = 0.25;
  const auto report = Run();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(Texts(options_.out, "train", tokenizer_),
            std::vector<std::string>{"0123456789abcde"});
  EXPECT_EQ(Texts(options_.out, "validation", tokenizer_),
            std::vector<std::string>{"fghij"});
  SetFileContents(folder_ + "/one.txt", "x");
  options_.out = folder_ + "/short";
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(Texts(options_.out, "train", tokenizer_),
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

// Every call failing once, alone or as a crash. Afterwards the folder is no
// data set or a whole one; the same command then ends with exactly the files of
// an undisturbed run.
TEST_F(PrepareTest, EveryFaultLeavesNoDataSetOrAWholeOneAndCanBeContinued) {
  options_.shard_tokens = 500;
  const auto wanted = Wanted();
  for (const bool crash : {false, true}) {
    int64_t faults = 0;
    int64_t reused = 0;
    for (int64_t n = 1;; ++n) {
      ASSERT_TRUE(posix_.Remove(options_.out).ok());
      FaultPlan plan;
      plan.fail_at = n;
      // A crash in a call that changes nothing is a crash in the next one.
      plan.calls = crash ? FaultPlan::Calls::kMutating : FaultPlan::Calls::kAll;
      plan.crash = crash;
      FaultFileSystem files(&posix_, plan);
      const auto report = Run(files);
      if (!files.fault_happened()) {
        ASSERT_TRUE(report.ok()) << report.status();
        EXPECT_EQ(Snapshot(options_.out), wanted);
        break;
      }
      ++faults;
      if (ReadDatasetIndex(posix_, options_.out).ok()) {
        EXPECT_EQ(Snapshot(options_.out), wanted) << files.failed_call();
      } else {
        EXPECT_FALSE(report.ok()) << files.failed_call();
        EXPECT_FALSE(TokenDataset::Open({options_.out}, "train", 8).ok());
      }
      if (!crash) {
        for (const auto& [name, contents] : Snapshot(options_.out)) {
          EXPECT_FALSE(absl::EndsWith(name, ".tmp"))
              << name << " after " << files.failed_call();
        }
      }
      const auto again = Run();
      ASSERT_TRUE(again.ok()) << files.failed_call() << ": " << again.status();
      reused += again->reused_shards;
      auto found = Snapshot(options_.out);
      for (const char* name : {"index.json.tmp", "prepare.json.tmp"}) {
        EXPECT_EQ(found.count(name), 0u) << files.failed_call();
      }
      EXPECT_EQ(found, wanted) << files.failed_call();
    }
    EXPECT_GT(faults, crash ? 30 : 45);
    EXPECT_GT(reused, 0) << "finished shards are not made again";
  }
}

TEST_F(PrepareTest, FullDiskKeepsFinishedShardsForTheNextCall) {
  const auto wanted = Wanted();
  FaultPlan plan;
  plan.fail_at = 40;
  FaultFileSystem files(&posix_, plan);
  const auto report = Run(files);
  ASSERT_EQ(report.status().code(), absl::StatusCode::kResourceExhausted);
  const auto left = Snapshot(options_.out);
  EXPECT_EQ(left.count("shard_00000.h5"), 1u);
  EXPECT_EQ(left.count("index.json"), 0u);
  const auto again = Run();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_GE(again->reused_shards, 1);
  EXPECT_EQ(Snapshot(options_.out), wanted);
}

class UnfinishedPreparation : public PrepareTest {
 protected:
  void SetUp() override {
    PrepareTest::SetUp();
    wanted_ = Wanted();
    ASSERT_TRUE(Run().ok());
    ASSERT_TRUE(posix_.Remove(Out("index.json")).ok());
  }
  std::map<std::string, std::string> wanted_;
};

TEST_F(UnfinishedPreparation, ContinuesAfterAnyNumberOfShards) {
  const int64_t shards =
      static_cast<int64_t>(wanted_.size()) - 3;  // index, request, tokenizer
  ASSERT_GE(shards, 5);
  for (int64_t kept = shards; kept >= 0; --kept) {
    for (int64_t number = kept; number < shards; ++number) {
      ASSERT_TRUE(posix_.Remove(Out(TokenShardName(number))).ok());
    }
    posix_.Remove(Out("index.json")).IgnoreError();
    const auto report = Run();
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->reused_shards, kept);
    EXPECT_EQ(Snapshot(options_.out), wanted_) << kept;
  }
}

TEST_F(UnfinishedPreparation, MakesDamagedShardsAndThoseAfterThemAgain) {
  std::string contents = FileContents(Out("shard_00002.h5"));
  contents[contents.find("document")] ^= 1;
  contents.resize(contents.size() - 1);
  SetFileContents(Out("shard_00002.h5"), contents);
  const auto report = Run();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->reused_shards, 2);
  EXPECT_EQ(Snapshot(options_.out), wanted_);
}

TEST_F(UnfinishedPreparation, StartsAgainForAnotherRequest) {
  options_.shard_tokens = 1000;
  const auto wanted = Wanted();
  const auto report = Run();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->reused_shards, 0);
  EXPECT_EQ(Snapshot(options_.out), wanted);
}

TEST_F(UnfinishedPreparation, StartsAgainWhenAnInputChanged) {
  const std::string text = FileContents(Input(1));
  SetFileContents(Input(1), absl::StrReplaceAll(text, {{"document", "Text"}}));
  const auto wanted = Wanted();
  const auto report = Run();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->reused_shards, 0);
  EXPECT_EQ(Snapshot(options_.out), wanted);
}

TEST_F(UnfinishedPreparation, ContinuesASingleDocument) {
  SetFileContents(folder_ + "/one.txt", "0123456789abcdefghij");
  options_.inputs = {folder_ + "/one.txt"};
  options_.out = folder_ + "/one";
  const auto wanted = Wanted();
  for (const int kept : {2, 1, 0}) {
    ASSERT_TRUE(Run().ok());
    for (int number = kept; number < 2; ++number) {
      ASSERT_TRUE(posix_.Remove(Out(TokenShardName(number))).ok());
    }
    ASSERT_TRUE(posix_.Remove(Out("index.json")).ok());
    const auto report = Run();
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->reused_shards, kept);
    EXPECT_EQ(Snapshot(options_.out), wanted);
  }
}

}  // namespace
}  // namespace cubit
