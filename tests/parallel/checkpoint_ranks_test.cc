// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints that several ranks write and read together: any layout loads what
// any other saved, to the bit; what fails on one rank fails on all, and leaves
// the steps before as they were.

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "parallel/checkpoint.h"
#include "parallel/replicas.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"
#include "tests/parallel/checkpoint_testing.h"
#include "tests/parallel/optimizer_testing.h"
#include "tests/testing/fault_file_system.h"

namespace cubit {
namespace {

using testing::ElementsAre;

struct Layout {
  MeshSizes sizes;
  bool shard = true;
};

GradientReducerOptions Options(const Layout& layout) {
  return {layout.shard, 1000};
}

std::vector<CheckpointTensor> WeightTensors(RankModel& model,
                                            MeshCommunicators& mesh) {
  std::vector<CheckpointTensor> tensors;
  for (const Parameter& parameter : model.store().parameters()) {
    CheckpointTensor tensor;
    tensor.name = "model." + parameter.name;
    tensor.spec = parameter.shard;
    tensor.data = parameter.value;
    tensor.owner = SavesParameter(parameter, mesh);
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

absl::Status Save(FileSystem& files, const std::string& folder, int64_t step,
                  RankModel& model, MeshCommunicators& mesh) {
  std::vector<CheckpointTensor> tensors = WeightTensors(model, mesh);
  CUBIT_ASSIGN_OR_RETURN(AdamWState state,
                         model.optimizer().GatherState(model.stream()));
  for (CheckpointTensor& moment : state.tensors) {
    tensors.push_back(std::move(moment));
  }
  return SaveCheckpoint(files, folder, TestInfo(step), tensors, TestFiles(),
                        CheckpointOptions(), &mesh.control());
}

absl::StatusOr<CheckpointInfo> Load(FileSystem& files,
                                    const std::string& folder, RankModel& model,
                                    MeshCommunicators& mesh) {
  std::vector<CheckpointTensor> tensors = WeightTensors(model, mesh);
  for (CheckpointTensor& moment : model.optimizer().StateToLoad()) {
    tensors.push_back(std::move(moment));
  }
  return LoadNewestCheckpoint(files, folder, tensors, &mesh.control());
}

// All weights and moments of the ranks together.
class WholeState {
 public:
  absl::Status Add(RankModel& model) {
    CUBIT_ASSIGN_OR_RETURN(const AdamWState state,
                           model.optimizer().GatherState(model.stream()));
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_TRUE(model.MergeValues(&values_));
    for (const CheckpointTensor& tensor : state.tensors) {
      EXPECT_TRUE(
          Merge(tensor.name, tensor.spec, tensor.data.data<float>(), &values_));
    }
    return absl::OkStatus();
  }
  const ModelValues& values() const { return values_; }

 private:
  std::mutex mutex_;
  ModelValues values_;
};

void ExpectAllOk(const std::vector<absl::Status>& statuses) {
  for (const absl::Status& status : statuses)
    EXPECT_TRUE(status.ok()) << status;
}

// Trains `steps` steps from what is in `folder` or from the start, saves, and
// returns the state.
ModelValues TrainAndSave(const Layout& layout, const std::string& folder,
                         int64_t first_step, int64_t num_steps) {
  WholeState whole;
  ExpectAllOk(
      RunOnMesh(layout.sizes, [&](MeshCommunicators& mesh) -> absl::Status {
        RankModel model(&mesh, Options(layout));
        const int64_t end = first_step + num_steps;
        for (int64_t step = first_step; step < end; ++step) {
          CUBIT_RETURN_IF_ERROR(model.Step(step));
        }
        CUBIT_RETURN_IF_ERROR(whole.Add(model));
        return Save(UnsyncedFiles(), folder, end - 1, model, mesh);
      }));
  return whole.values();
}

// What a run on `layout` has after loading, and saves anew as `save_step`.
ModelValues LoadAndSave(const Layout& layout, const std::string& folder,
                        int64_t save_step) {
  WholeState whole;
  ExpectAllOk(
      RunOnMesh(layout.sizes, [&](MeshCommunicators& mesh) -> absl::Status {
        RankModel model(&mesh, Options(layout));
        CUBIT_ASSIGN_OR_RETURN(const CheckpointInfo info,
                               Load(UnsyncedFiles(), folder, model, mesh));
        EXPECT_EQ(info.step, save_step - 1);
        EXPECT_EQ(info.config, TestInfo(1).config);
        CUBIT_RETURN_IF_ERROR(whole.Add(model));
        return Save(UnsyncedFiles(), folder, save_step, model, mesh);
      }));
  return whole.values();
}

TEST(CheckpointRanks, AnyLayoutLoadsWhatAnyOtherSaved) {
  const std::string folder = FreshFolder("c");
  int64_t step = 2;
  const ModelValues saved = TrainAndSave({{2, 1, 2, 1}, true}, folder, 1, step);
  EXPECT_EQ(saved.size(), 36u);  // 12 parameters, twice 12 moments
  for (const Layout& layout : std::vector<Layout>{{{4, 1, 1, 1}, true},
                                                  {{1, 1, 4, 1}, true},
                                                  {{1, 1, 1, 1}, true},
                                                  {{2, 1, 1, 2}, true},
                                                  {{1, 2, 2, 1}, false},
                                                  {{1, 1, 2, 2}, true},
                                                  {{3, 1, 1, 1}, true},
                                                  {{2, 1, 2, 1}, true}}) {
    SCOPED_TRACE(layout.sizes.ToString());
    EXPECT_EQ(LoadAndSave(layout, folder, ++step), saved);
  }
}

TEST(CheckpointRanks, EverySliceIsWrittenOnceAndHashed) {
  const std::string folder = FreshFolder("c");
  TrainAndSave({{2, 1, 2, 1}, true}, folder, 1, 1);
  EXPECT_THAT(*UnsyncedFiles().List(CheckpointFolder(folder, 1)),
              ElementsAre("config.textproto", "manifest.json",
                          "rank-00000-00001.safetensors",
                          "rank-00001-00001.safetensors", "tokenizer"));
  EXPECT_THAT(*UnsyncedFiles().List(folder),
              ElementsAre("latest", "step_00000001"));
}

TEST(CheckpointRanks, TrainingGoesOnAsIfItHadNotStopped) {
  const std::string folder = FreshFolder("c");
  const Layout layout = {{2, 1, 2, 1}, true};
  TrainAndSave(layout, folder, 1, 2);
  WholeState resumed;
  WholeState straight;
  ExpectAllOk(
      RunOnMesh(layout.sizes, [&](MeshCommunicators& mesh) -> absl::Status {
        RankModel model(&mesh, Options(layout));
        CUBIT_RETURN_IF_ERROR(
            Load(UnsyncedFiles(), folder, model, mesh).status());
        CUBIT_RETURN_IF_ERROR(model.Step(3));
        CUBIT_RETURN_IF_ERROR(resumed.Add(model));
        RankModel other(&mesh, Options(layout));
        for (int64_t step = 1; step <= 3; ++step) {
          CUBIT_RETURN_IF_ERROR(other.Step(step));
        }
        return straight.Add(other);
      }));
  EXPECT_EQ(resumed.values(), straight.values());
}

// What Save returns on each rank of a mesh; a rank may have a file system, or a
// folder, of its own. No rank ends the others.
struct SaveCase {
  MeshSizes sizes = {1, 1, 2, 1};
  int64_t step = 1;
  std::function<FileSystem&(int rank)> files = [](int) -> FileSystem& {
    return UnsyncedFiles();
  };
  std::function<std::string(int rank)> folder;
};

std::vector<absl::Status> SaveOn(const SaveCase& c) {
  std::vector<absl::Status> statuses(static_cast<size_t>(c.sizes.world()));
  ExpectAllOk(RunOnMesh(c.sizes, [&](MeshCommunicators& mesh) {
    RankModel model(&mesh, {true, 4000});
    const int rank = mesh.rank();
    statuses[static_cast<size_t>(rank)] =
        Save(c.files(rank), c.folder(rank), c.step, model, mesh);
    return mesh.Health();  // a save that failed leaves the groups whole
  }));
  return statuses;
}

// The n-th call of rank 0, and of a rank that writes besides, fails.
TEST(CheckpointRanks, AFailureOnOneRankFailsAllAndLeavesTheStepBefore) {
  const std::string folder = FreshFolder("c");
  SaveCase c;
  c.folder = [&](int) { return folder; };
  ExpectAllOk(SaveOn(c));
  c.step = 2;
  for (int failing : {0, 1}) {
    bool fault = true;
    int64_t n = 1;
    for (; fault; ++n) {
      SCOPED_TRACE(absl::StrCat("call ", n, " of rank ", failing));
      FaultPlan plan;
      plan.fail_at = n;
      FaultFileSystem faulty(&UnsyncedFiles(), plan);
      c.files = [&](int rank) -> FileSystem& {
        if (rank == failing) return faulty;
        return UnsyncedFiles();
      };
      const auto statuses = SaveOn(c);
      fault = faulty.fault_happened();
      for (const absl::Status& status : statuses) {
        EXPECT_EQ(status, statuses[0]);
        EXPECT_EQ(status.ok(), !fault) << status;
        EXPECT_TRUE(status.ok() ||
                    absl::StrContains(status.message(),
                                      absl::StrCat("rank ", failing, ": ")))
            << status;
      }
      EXPECT_FALSE(UnsyncedFiles().Exists(folder + "/step_00000002.tmp"));
      // Only what comes after the commit may leave the new step.
      const auto steps = ListCheckpoints(UnsyncedFiles(), folder);
      if (steps.size() > 1) {
        CUBIT_CHECK_OK(
            UnsyncedFiles().Remove(CheckpointFolder(folder, steps[1])));
      }
      EXPECT_EQ(steps[0], 1);
      if (HasFailure()) return;
    }
    EXPECT_GT(n, failing == 0 ? 15 : 5) << "the faults do not reach the save";
  }
  ExpectAllOk(RunOnMesh({1, 1, 1, 1}, [&](MeshCommunicators& mesh) {
    RankModel model(&mesh, {});
    return Load(UnsyncedFiles(), folder, model, mesh).status();
  }));
}

TEST(CheckpointRanks, ARankThatSeesAnotherFolderIsTold) {
  const std::string folder = FreshFolder("c");
  SaveCase c;
  c.folder = [&](int rank) { return rank == 0 ? folder : folder + "/other"; };
  const auto statuses = SaveOn(c);
  for (const absl::Status& status : statuses) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_TRUE(absl::StrContains(status.message(), "rank 1: ")) << status;
    EXPECT_TRUE(absl::StrContains(status.message(),
                                  "a file system that all nodes share"))
        << status;
  }
  EXPECT_THAT(*UnsyncedFiles().List(folder), ElementsAre());
}

TEST(CheckpointRanks, ARankThatIsGoneFailsTheSave) {
  const std::string folder = FreshFolder("c");
  const Layout layout = {{2, 1, 2, 1}, true};
  const ModelValues saved = TrainAndSave(layout, folder, 1, 1);
  const auto statuses =
      RunOnMesh(layout.sizes, [&](MeshCommunicators& mesh) -> absl::Status {
        RankModel model(&mesh, Options(layout));
        if (mesh.rank() == 1) return absl::UnavailableError("rank 1 is gone");
        return Save(UnsyncedFiles(), folder, 2, model, mesh);
      });
  for (const absl::Status& status : statuses) {
    EXPECT_TRUE(absl::StrContains(status.message(), "rank 1 is gone"))
        << status;
  }
  EXPECT_THAT(ListCheckpoints(UnsyncedFiles(), folder), ElementsAre(1));
  EXPECT_EQ(LoadAndSave(layout, folder, 2), saved);
}

TEST(CheckpointRanks, AManifestThatIsGoneMakesAllFallBack) {
  const std::string folder = FreshFolder("c");
  const Layout layout = {{2, 1, 1, 1}, true};
  const ModelValues first = TrainAndSave(layout, folder, 1, 1);
  TrainAndSave(layout, folder, 1, 2);
  CUBIT_CHECK_OK(
      UnsyncedFiles().Remove(CheckpointFolder(folder, 2) + "/manifest.json"));
  EXPECT_EQ(LoadAndSave(layout, folder, 2), first);
}

TEST(CheckpointRanks, AnotherModelIsAnErrorOnEveryRank) {
  const std::string folder = FreshFolder("c");
  TrainAndSave({{1, 1, 1, 1}, true}, folder, 1, 1);
  std::vector<absl::Status> statuses(2);
  ExpectAllOk(RunOnMesh({2, 1, 1, 1}, [&](MeshCommunicators& mesh) {
    RankModel model(&mesh, {});
    if (mesh.rank() == 1) model.Find("final_norm").name = "other";
    statuses[static_cast<size_t>(mesh.rank())] =
        Load(UnsyncedFiles(), folder, model, mesh).status();
    return absl::OkStatus();
  }));
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(statuses[0], statuses[1]);
}

TEST(CheckpointRanks, DamageThatOneRankSeesMakesAllFallBack) {
  const std::string folder = FreshFolder("c");
  const Layout layout = {{1, 1, 2, 1}, true};
  const ModelValues first = TrainAndSave(layout, folder, 1, 1);
  const ModelValues second = TrainAndSave(layout, folder, 1, 2);
  ASSERT_NE(first, second);
  // A bit of what rank 1 alone reads.
  const std::string path =
      CheckpointFolder(folder, 2) + "/rank-00001-00001.safetensors";
  std::string bytes = *ReadFile(UnsyncedFiles(), path, 1 << 20);
  bytes.back() ^= 1;
  CUBIT_CHECK_OK(WriteFileAtomically(UnsyncedFiles(), path, bytes));
  WholeState whole;
  ExpectAllOk(
      RunOnMesh(layout.sizes, [&](MeshCommunicators& mesh) -> absl::Status {
        RankModel model(&mesh, Options(layout));
        CUBIT_ASSIGN_OR_RETURN(const CheckpointInfo info,
                               Load(UnsyncedFiles(), folder, model, mesh));
        EXPECT_EQ(info.step, 1) << "rank " << mesh.rank();
        return whole.Add(model);
      }));
  EXPECT_EQ(whole.values(), first);
}

}  // namespace
}  // namespace cubit
