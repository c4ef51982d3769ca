// SPDX-License-Identifier: Apache-2.0
//
// Preparations that are interrupted, and what the next call makes of them.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

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

// Names of temporary files in a snapshot.
std::vector<std::string> Temporaries(
    const std::map<std::string, std::string>& snapshot) {
  std::vector<std::string> names;
  for (const auto& [name, contents] : snapshot) {
    if (absl::EndsWith(name, ".tmp")) names.push_back(name);
  }
  return names;
}

// One preparation in which call n fails, and a second one after it.
class PrepareFaultTest : public PrepareTest {
 protected:
  // False once no call was left to fail.
  bool FailAt(int64_t n, bool crash) {
    EXPECT_TRUE(posix_.Remove(options_.out).ok());
    FaultPlan plan;
    plan.fail_at = n;
    // A crash in a call that changes nothing is a crash in the next one.
    plan.calls = crash ? FaultPlan::Calls::kMutating : FaultPlan::Calls::kAll;
    plan.crash = crash;
    FaultFileSystem files(&posix_, plan);
    const auto report = Run(files);
    if (!files.fault_happened()) {
      EXPECT_TRUE(report.ok()) << report.status();
      EXPECT_EQ(Snapshot(options_.out), wanted_);
      return false;
    }
    CheckAfterFault(files, report.ok(), crash);
    const auto again = Run();
    EXPECT_TRUE(again.ok()) << files.failed_call() << ": " << again.status();
    if (again.ok()) reused_ += again->reused_shards;
    EXPECT_EQ(Snapshot(options_.out), wanted_) << files.failed_call();
    return true;
  }

  void CheckAfterFault(const FaultFileSystem& files, bool reported_ok,
                       bool crash) {
    if (ReadDatasetIndex(posix_, options_.out).ok()) {
      EXPECT_EQ(Snapshot(options_.out), wanted_) << files.failed_call();
    } else {
      EXPECT_FALSE(reported_ok) << files.failed_call();
      EXPECT_FALSE(TokenDataset::Open({options_.out}, "train", 8).ok());
    }
    if (!crash) {
      EXPECT_EQ(Temporaries(Snapshot(options_.out)).size(), 0u)
          << files.failed_call();
    }
  }

  std::map<std::string, std::string> wanted_;
  int64_t reused_ = 0;
};

// Every call failing once, alone or as a crash. Afterwards the folder is no
// data set or a whole one; the same command then ends with exactly the files of
// an undisturbed run.
TEST_F(PrepareFaultTest, LeavesNoDataSetOrAWholeOneAndCanBeContinued) {
  options_.shard_tokens = 500;
  wanted_ = Wanted();
  for (const bool crash : {false, true}) {
    reused_ = 0;
    int64_t faults = 0;
    while (FailAt(faults + 1, crash)) ++faults;
    EXPECT_GT(faults, crash ? 30 : 45);
    EXPECT_GT(reused_, 0) << "finished shards are not made again";
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
