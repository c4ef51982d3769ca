// SPDX-License-Identifier: Apache-2.0
//
// Trainers of ranks that are threads, one of which computes something else than
// its replica, as a faulty machine does.

#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "data/reader_process.h"
#include "launch/config.h"
#include "launch/data_setup.h"
#include "launch/model_setup.h"
#include "launch/parallel_plan.h"
#include "launch/run.pb.h"
#include "launch/run_directory.h"
#include "launch/trainer.h"
#include "parallel/mesh_communicators.h"
#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/communicator.h"
#include "runtime/communicator_threads.h"
#include "runtime/file_system.h"
#include "runtime/host_name.h"
#include "runtime/status_macros.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLimit = absl::Seconds(60);

// Two dp ranks that each update all weights (with zero_stage 1 a rank gets what
// it has not updated from the other).
constexpr const char* kKeys[] = {
    "model.num_layers=1",        "model.hidden_size=16",
    "model.num_heads=2",         "model.seq_len=32",
    "batch.global_batch_size=4", "batch.micro_batch_size=2",
    "parallel.nodes=2",          "parallel.zero_stage=0",
    "schedule.total_steps=6",    "schedule.kind=constant",
    "schedule.warmup_steps=1",   "checkpoint.every_steps=2",
    "evaluation.max_batches=1"};

class ReplicasTrainTest : public ::testing::Test {
 protected:
  ReplicasTrainTest() : home_(testing::NewFolder()), run_(home_ + "/run") {
    setenv("XDG_CACHE_HOME", (home_ + "/cache").c_str(), 1);
    std::string text;
    for (int i = 0; i < 200; ++i) text += "the cats sat and the dogs ran. ";
    testing::WriteText(home_ + "/text.txt", text);
    for (const char* key : kKeys) {
      CUBIT_CHECK_OK(ApplyOverride(key, &config_));
    }
    config_.mutable_data()->add_path(home_ + "/text.txt");
    CUBIT_CHECK_OK(PrepareRunData(config_));
  }

  // Exit statuses of the ranks; `change` is made to rank 1 alone.
  std::vector<absl::StatusOr<int>> Train(
      const std::function<void(RunConfig*)>& change) {
    auto world = MakeThreadCommunicators("world", 2, kLimit);
    auto control = MakeThreadCommunicators("control", 2, kLimit);
    std::vector<absl::StatusOr<int>> results(2);
    std::vector<std::thread> threads;
    for (size_t r = 0; r < 2; ++r) {
      threads.emplace_back([&, r] {
        RunConfig config = config_;
        if (r == 1) change(&config);
        results[r] =
            TrainRank(config, std::move(world[r]), std::move(control[r]));
      });
    }
    for (std::thread& thread : threads) thread.join();
    return results;
  }

  bool HasCheckpoint(const std::string& step) const {
    return FileSystem::Posix().Exists(run_ + "/checkpoints/step_" + step);
  }

  const std::string home_;
  const std::string run_;
  RunConfig config_;

 private:
  absl::StatusOr<int> TrainRank(const RunConfig& config,
                                std::unique_ptr<Communicator> world,
                                std::unique_ptr<Communicator> control) {
    CUBIT_ASSIGN_OR_RETURN(RunData data, PrepareRunData(config));
    CUBIT_ASSIGN_OR_RETURN(
        const ModelConfig model,
        MakeModelConfig(config, data.tokenizer->vocab_size()));
    CUBIT_ASSIGN_OR_RETURN(const ParallelPlan layout,
                           MakeParallelPlan(config, model, 2, "cpu"));
    CUBIT_ASSIGN_OR_RETURN(
        RunDirectory directory,
        world->rank() == 0
            ? RunDirectory::Open(FileSystem::Posix(), run_, /*resume=*/false)
            : RunDirectory::OfAnother(run_));
    CUBIT_ASSIGN_OR_RETURN(const auto mesh, MeshCommunicators::Create(
                                                layout.mesh, std::move(world),
                                                std::move(control)));
    TrainerOptions options;
    options.resume_command = "the command to resume";
    CUBIT_ASSIGN_OR_RETURN(
        const auto trainer,
        Trainer::Create(config, options, std::move(data), std::move(directory),
                        layout, mesh.get()));
    return trainer->Run();
  }
};

TEST_F(ReplicasTrainTest, EqualReplicasTrain) {
  for (const auto& status : Train([](RunConfig*) {})) {
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_EQ(*status, kExitDone);
  }
  EXPECT_TRUE(HasCheckpoint("00000006"));
}

// What the ranks say comes out once for each.
void ExpectOtherHardware(const std::vector<absl::StatusOr<int>>& statuses) {
  for (const auto& status : statuses) {
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_EQ(*status, kExitOtherHardware);
  }
}

TEST_F(ReplicasTrainTest, OtherWeightsAtTheStartAreRefused) {
  ::testing::internal::CaptureStderr();
  const auto statuses = Train([](RunConfig* config) { config->set_seed(1); });
  const std::string said = ::testing::internal::GetCapturedStderr();
  ExpectOtherHardware(statuses);
  EXPECT_THAT(said, HasSubstr("step 0: the weights of ranks that must be equal "
                              "differ: ranks 0, 1 of the group of ranks 0, 1, "
                              "first in "));
  EXPECT_THAT(said, HasSubstr("(host " + HostName() +
                              "). No step was made of them; start again"));
}

TEST_F(ReplicasTrainTest, OtherUpdatesAreFoundBeforeTheyAreSaved) {
  ::testing::internal::CaptureStderr();
  // Another learning rate from update 4 on.
  const auto statuses = Train([](RunConfig* config) {
    config->mutable_schedule()->set_kind(RunConfig::ScheduleKind::wsd);
    config->mutable_schedule()->set_decay_steps(3);
  });
  const std::string said = ::testing::internal::GetCapturedStderr();
  ExpectOtherHardware(statuses);
  EXPECT_THAT(said, HasSubstr("step 4: the weights of ranks"));
  EXPECT_THAT(said,
              HasSubstr("They were equal at step 2 and are not saved; go on "
                        "from the last checkpoint without that host: the "
                        "command to resume"));
  EXPECT_TRUE(HasCheckpoint("00000002"));
  EXPECT_FALSE(HasCheckpoint("00000004"));
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  if (const auto status = cubit::RunReaderProcess(argc, argv)) return *status;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
