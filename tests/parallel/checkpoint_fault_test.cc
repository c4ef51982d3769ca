// SPDX-License-Identifier: Apache-2.0
//
// Saving and pruning with the n-th file operation failing, for every n until a
// run completes: a reader always finds the old or the new state, whole.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "parallel/checkpoint.h"
#include "runtime/file_system.h"
#include "tests/parallel/checkpoint_testing.h"
#include "tests/testing/fault_file_system.h"

namespace cubit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

FileSystem& Files() { return UnsyncedFiles(); }

struct FaultCase {
  const char* name;
  bool crash;
  int64_t old_step;  // with value 1
  int64_t new_step;  // with value 2; the same step is a replacement
};

class CheckpointFault : public testing::TestWithParam<FaultCase> {};

// Saves the new step with call n failing; returns whether a fault was reached.
bool SaveWithFault(const std::string& folder, int64_t n, const FaultCase& c,
                   absl::Status* status) {
  FaultPlan plan;
  plan.fail_at = n;
  plan.crash = c.crash;
  FaultFileSystem files(&Files(), plan);
  const TestModel model(2);
  CheckpointOptions options;
  options.max_file_bytes = 100;  // several data files
  *status = SaveCheckpoint(files, folder, TestInfo(c.new_step), model.tensors(),
                           TestFiles(), options);
  SCOPED_TRACE(files.failed_call());
  if (files.fault_happened() && !status->ok()) {
    EXPECT_THAT(std::string(status->message()), HasSubstr("injected fault"));
  }
  return files.fault_happened();
}

TEST_P(CheckpointFault, ReaderFindsTheOldOrTheNewStateWhole) {
  const FaultCase& c = GetParam();
  int64_t n = 1;
  std::set<int> found;
  for (bool fault = true; fault; ++n) {
    SCOPED_TRACE(absl::StrCat("call ", n));
    const std::string folder = FreshFolder("c");
    SaveTestModel(folder, c.old_step, 1);
    absl::Status status;
    fault = SaveWithFault(folder, n, c, &status);
    int64_t step = 0;
    const int value = LoadedValue(folder, {1, 2}, &step);
    EXPECT_EQ(step, value == 1 ? c.old_step : c.new_step);
    EXPECT_TRUE(value == 2 || !status.ok());
    found.insert(value);
    // The next save and clean-up make everything good, whatever was left.
    SaveTestModel(folder, c.new_step, 3);
    EXPECT_EQ(LoadedValue(folder, {3}, &step), 3);
    ASSERT_TRUE(PruneCheckpoints(Files(), folder, 1, 0).ok());
    auto names = *Files().List(folder);
    names.erase(std::remove(names.begin(), names.end(), "latest.tmp"),
                names.end());
    EXPECT_EQ(names, (std::vector<std::string>{
                         "latest", absl::StrCat("step_0000000", c.new_step)}));
    if (HasFailure()) return;
  }
  EXPECT_GT(n, 30) << "too few calls for a save: the faults do not reach it";
  EXPECT_THAT(found, ElementsAre(1, 2));
}

INSTANTIATE_TEST_SUITE_P(
    Plans, CheckpointFault,
    testing::Values(FaultCase{"FailNewStep", false, 1, 2},
                    FaultCase{"CrashNewStep", true, 1, 2},
                    FaultCase{"FailReplacement", false, 1, 1},
                    FaultCase{"CrashReplacement", true, 1, 1}),
    [](const auto& plan) { return std::string(plan.param.name); });

TEST(CheckpointFaultCleanup, RemovesTheTemporaryFolderAfterAFullDisk) {
  const std::string folder = FreshFolder("c");
  SaveTestModel(folder, 1, 1);
  FaultPlan plan;
  plan.fail_at = 8;
  FaultFileSystem files(&Files(), plan);
  const TestModel model(2);
  const absl::Status status =
      SaveCheckpoint(files, folder, TestInfo(2), model.tensors(), TestFiles());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("step 2 failed"));
  EXPECT_THAT(*Files().List(folder), ElementsAre("latest", "step_00000001"));
}

TEST(PruneFault, NeverLosesTheNewestStep) {
  for (bool crash : {false, true}) {
    bool fault = true;
    for (int64_t n = 1; fault; ++n) {
      SCOPED_TRACE(absl::StrCat("call ", n, crash ? " crash" : ""));
      const std::string folder = FreshFolder("c");
      for (int step : {1, 2, 3}) SaveTestModel(folder, step, step);
      FaultPlan plan;
      plan.fail_at = n;
      plan.crash = crash;
      FaultFileSystem files(&Files(), plan);
      const absl::Status status = PruneCheckpoints(files, folder, 1, 0);
      fault = files.fault_happened();
      EXPECT_EQ(status.ok(), !fault);
      // Every step that is still listed is whole, and the newest is there.
      for (int64_t step : ListCheckpoints(Files(), folder)) {
        const TestModel model(9);
        EXPECT_TRUE(LoadCheckpoint(Files(), CheckpointFolder(folder, step),
                                   model.tensors())
                        .ok());
      }
      int64_t step = 0;
      EXPECT_EQ(LoadedValue(folder, {3}, &step), 3);
      ASSERT_TRUE(PruneCheckpoints(Files(), folder, 1, 0).ok());
      EXPECT_THAT(*Files().List(folder),
                  ElementsAre("latest", "step_00000003"));
      if (HasFailure()) return;
    }
  }
}

TEST(LoadFault, FallsBackWhenAFileCannotBeRead) {
  const std::string folder = FreshFolder("c");
  SaveTestModel(folder, 1, 1);
  SaveTestModel(folder, 2, 2);
  std::set<int64_t> steps;
  bool fault = true;
  for (int64_t n = 1; fault; ++n) {
    FaultPlan plan;
    plan.fail_at = n;
    plan.calls = FaultPlan::Calls::kAll;
    plan.error = absl::UnavailableError("injected fault");
    FaultFileSystem files(&Files(), plan);
    const TestModel model(9);
    const auto info = LoadNewestCheckpoint(files, folder, model.tensors());
    fault = files.fault_happened();
    if (n == 1) {  // the list of steps itself
      EXPECT_EQ(info.status().code(), absl::StatusCode::kNotFound);
      continue;
    }
    ASSERT_TRUE(info.ok()) << info.status() << " at " << files.failed_call();
    EXPECT_TRUE(model == TestModel(static_cast<int>(info->step)));
    EXPECT_EQ(info->step, fault ? 1 : 2) << files.failed_call();
    steps.insert(info->step);
  }
  EXPECT_THAT(steps, ElementsAre(1, 2));
}

// Notes the order of operations: what must be durable before what.
class OrderFileSystem : public FileSystem {
 public:
  explicit OrderFileSystem(FileSystem* base) : base_(base) {}

  const std::vector<std::string>& calls() const { return calls_; }
  // Place of the first such call; -1 if there is none.
  int Find(const std::string& call) const {
    for (size_t i = 0; i < calls_.size(); ++i) {
      if (calls_[i] == call) return static_cast<int>(i);
    }
    return -1;
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(
      const std::string& path) override {
    calls_.push_back("create " + path);
    auto file = base_->Create(path);
    if (!file.ok()) return file.status();
    return std::make_unique<OrderFile>(this, std::move(*file), path);
  }
  absl::Status Read(const std::string& path, int64_t offset, int64_t bytes,
                    void* data) override {
    return base_->Read(path, offset, bytes, data);
  }
  absl::StatusOr<int64_t> FileSize(const std::string& path) override {
    return base_->FileSize(path);
  }
  bool Exists(const std::string& path) override { return base_->Exists(path); }
  absl::Status CreateFolders(const std::string& path) override {
    return base_->CreateFolders(path);
  }
  absl::StatusOr<std::vector<std::string>> List(
      const std::string& path) override {
    return base_->List(path);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    calls_.push_back("rename " + from);
    return base_->Rename(from, to);
  }
  absl::Status Remove(const std::string& path) override {
    return base_->Remove(path);
  }
  absl::Status SyncFolder(const std::string& path) override {
    calls_.push_back("sync folder " + path);
    return base_->SyncFolder(path);
  }

 private:
  struct OrderFile : public WritableFile {
    OrderFile(OrderFileSystem* o, std::unique_ptr<WritableFile> b,
              std::string p)
        : order(o), base(std::move(b)), path(std::move(p)) {}
    absl::Status Append(const void* data, int64_t bytes) override {
      order->calls_.push_back("append " + path);
      return base->Append(data, bytes);
    }
    absl::Status Sync() override {
      order->calls_.push_back("sync " + path);
      return base->Sync();
    }
    absl::Status Close() override { return base->Close(); }

    OrderFileSystem* order;
    std::unique_ptr<WritableFile> base;
    std::string path;
  };

  FileSystem* base_;
  std::vector<std::string> calls_;
};

TEST(CheckpointOrder, EverythingIsDurableBeforeTheCommit) {
  const std::string folder = FreshFolder("c") + "/run/checkpoints";
  OrderFileSystem files(&Files());
  const TestModel model(1);
  ASSERT_TRUE(
      SaveCheckpoint(files, folder, TestInfo(1), model.tensors(), TestFiles())
          .ok());
  const std::string temporary = folder + "/step_00000001.tmp";
  const int commit = files.Find("rename " + temporary);
  const int manifest = files.Find("create " + temporary + "/manifest.json");
  ASSERT_GE(commit, 0);
  int created = 0;
  for (int i = 0; i < commit; ++i) {
    const std::string& call = files.calls()[static_cast<size_t>(i)];
    if (!absl::StartsWith(call, "create ")) continue;
    ++created;
    const std::string path = call.substr(7);
    const int sync = files.Find("sync " + path);
    EXPECT_GT(sync, i) << path;
    EXPECT_LT(sync, commit) << path;
    if (!absl::EndsWith(path, "manifest.json")) {
      EXPECT_LT(sync, manifest) << path << " after the manifest";
    }
  }
  EXPECT_EQ(created, 4);  // one data file, two extra files, the manifest
  const int inner = files.Find("sync folder " + temporary + "/tokenizer");
  EXPECT_GE(inner, 0);
  EXPECT_LT(inner, commit);
  EXPECT_EQ(files.Find("sync folder " + temporary), commit - 1);
  EXPECT_EQ(files.Find("sync folder " + folder), commit + 1);
  // The folder of checkpoints itself is new.
  EXPECT_GE(files.Find("sync folder " + FolderOf(folder)), 0);
  EXPECT_GT(files.Find("rename " + folder + "/latest.tmp"), commit + 1);
}

}  // namespace
}  // namespace cubit
