// SPDX-License-Identifier: Apache-2.0
//
// Preparations that are interrupted, and what the next call makes of them.

#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"

#include "data/dataset_index.h"
#include "data/prepare.h"
#include "data/token_dataset.h"
#include "tests/data/prepare_fixture.h"
#include "tests/data/shard_files.h"
#include "tests/testing/fault_file_system.h"

namespace cubit {
namespace {

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
