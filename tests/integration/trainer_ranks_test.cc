// SPDX-License-Identifier: Apache-2.0
//
// Trainers of two ranks that are threads: what they say to a watchdog; and one
// that computes something else than its replica, as a faulty machine does.

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

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

class TrainerRanksTest : public ::testing::Test {
 protected:
  TrainerRanksTest() : home_(testing::NewFolder()), run_(home_ + "/run") {
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

  using Change = std::function<void(int rank, RunConfig*, TrainerOptions*)>;

  // Exit statuses of the ranks.
  std::vector<absl::StatusOr<int>> Train(const Change& change) {
    auto world = MakeThreadCommunicators("world", 2, kLimit);
    auto control = MakeThreadCommunicators("control", 2, kLimit);
    std::vector<absl::StatusOr<int>> results(2);
    std::vector<std::thread> threads;
    for (size_t r = 0; r < 2; ++r) {
      threads.emplace_back([&, r] {
        RunConfig config = config_;
        TrainerOptions options;
        options.resume_command = "the command to resume";
        change(static_cast<int>(r), &config, &options);
        results[r] = TrainRank(config, options, std::move(world[r]),
                               std::move(control[r]));
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
                                const TrainerOptions& options,
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
    CUBIT_ASSIGN_OR_RETURN(
        const auto trainer,
        Trainer::Create(config, options, std::move(data), std::move(directory),
                        layout, mesh.get()));
    return trainer->Run();
  }
};

void ExpectStatus(const std::vector<absl::StatusOr<int>>& statuses,
                  int wanted) {
  for (const auto& status : statuses) {
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_EQ(*status, wanted);
  }
}

TEST_F(TrainerRanksTest, EqualReplicasTrain) {
  ExpectStatus(Train([](int, RunConfig*, TrainerOptions*) {}), kExitDone);
  EXPECT_TRUE(HasCheckpoint("00000006"));
}

// What tp does not cut, and a tied embedding on both ends, have replicas too.
TEST_F(TrainerRanksTest, EqualPartsTrain) {
  config_.mutable_model()->set_num_layers(2);
  config_.mutable_model()->set_tied_embeddings(true);
  for (const bool tp : {true, false}) {
    config_.mutable_parallel()->set_tp_size(tp ? 2 : 1);
    config_.mutable_parallel()->set_pp_size(tp ? 1 : 2);
    ExpectStatus(Train([](int, RunConfig*, TrainerOptions*) {}), kExitDone);
    EXPECT_TRUE(HasCheckpoint("00000006"));
    ASSERT_TRUE(FileSystem::Posix().Remove(run_).ok());
  }
}

TEST_F(TrainerRanksTest, OtherWeightsAtTheStartAreRefused) {
  ::testing::internal::CaptureStderr();
  const auto statuses = Train([](int rank, RunConfig* config, TrainerOptions*) {
    config->set_seed(static_cast<uint64_t>(rank));
  });
  const std::string said = ::testing::internal::GetCapturedStderr();
  ExpectStatus(statuses, kExitOtherHardware);
  EXPECT_THAT(said, HasSubstr("step 0: the weights of ranks that must be equal "
                              "differ: ranks 0, 1 of the group of ranks 0, 1, "
                              "first in "));
  EXPECT_THAT(said, HasSubstr("(host " + HostName() +
                              "). No step was made of them; start again"));
}

TEST_F(TrainerRanksTest, OtherUpdatesAreFoundBeforeTheyAreSaved) {
  ::testing::internal::CaptureStderr();
  const auto statuses = Train([](int rank, RunConfig* config, TrainerOptions*) {
    if (rank == 0) return;
    // Another learning rate from update 4 on.
    config->mutable_schedule()->set_kind(RunConfig::ScheduleKind::wsd);
    config->mutable_schedule()->set_decay_steps(3);
  });
  const std::string said = ::testing::internal::GetCapturedStderr();
  ExpectStatus(statuses, kExitOtherHardware);
  EXPECT_THAT(said, HasSubstr("step 4: the weights of ranks"));
  EXPECT_THAT(said,
              HasSubstr("They were equal at step 2 and are not saved; go on "
                        "from the last checkpoint without that host: the "
                        "command to resume"));
  EXPECT_TRUE(HasCheckpoint("00000002"));
  EXPECT_FALSE(HasCheckpoint("00000004"));
}

TEST_F(TrainerRanksTest, ProfiledStepsLeaveTheirWavefronts) {
  config_.mutable_parallel()->set_cp_size(2);
  config_.mutable_parallel()->set_cp_method(RunConfig::CpMethod::wavefront);
  ExpectStatus(Train([](int, RunConfig*, TrainerOptions* options) {
                 options->profile_first = 2;
                 options->profile_last = 3;
               }),
               kExitDone);
  for (int rank = 0; rank < 2; ++rank) {
    std::istringstream lines(testing::ReadText(
        absl::StrCat(run_, "/profile/wavefront_rank_", rank, ".jsonl")));
    std::string line;
    int count = 0;
    double end = 0;
    for (; std::getline(lines, line); ++count) {
      const auto span = nlohmann::json::parse(line);
      EXPECT_EQ(span["rank"], rank);
      EXPECT_LT(span["start"], span["end"]);
      end = span["end"];
    }
    // Two steps, two micro-batches, one layer, four groups; of each the rank
    // has half of 2 x 10 actions forward and 3 x 10 backward.
    EXPECT_EQ(count, 2 * 2 * 4 * (10 + 15));
    EXPECT_LT(end, 60);
  }
  for (const char* name : {"forward", "backward"}) {
    const std::string svg = testing::ReadText(
        absl::StrCat(run_, "/profile/wavefront_", name, ".svg"));
    EXPECT_THAT(svg, HasSubstr(absl::StrCat("Step 2: the first wavefront ",
                                            name, " on 2 ranks")));
    EXPECT_THAT(svg, HasSubstr("group 3"));
    EXPECT_THAT(svg, HasSubstr("rank 1"));
  }
}

TEST_F(TrainerRanksTest, OtherMethodsLeaveNone) {
  config_.mutable_parallel()->set_cp_size(2);
  config_.mutable_parallel()->set_cp_method(RunConfig::CpMethod::ulysses);
  ExpectStatus(Train([](int, RunConfig*, TrainerOptions* options) {
                 options->profile_first = 2;
                 options->profile_last = 2;
               }),
               kExitDone);
  EXPECT_FALSE(FileSystem::Posix().Exists(run_ + "/profile"));
}

TEST_F(TrainerRanksTest, TheActivityHasTheBlockOfTheWavefront) {
  config_.mutable_parallel()->set_cp_size(2);
  config_.mutable_parallel()->set_cp_method(RunConfig::CpMethod::wavefront);
  std::vector<std::set<std::string>> told(2);
  const auto statuses =
      Train([&told](int rank, RunConfig*, TrainerOptions* options) {
        options->watch = [&mine = told[static_cast<size_t>(rank)]](
                             int64_t, const std::string& activity) {
          mine.insert(activity);
        };
      });
  ExpectStatus(statuses, kExitDone);
  // Rank 0 has chunks 0 and 3, rank 1 has 1 and 2.
  for (const char* words : {"F1.0", "F1.0, block solve 0 of group 0", "B0.0",
                            "B0.0, block adjoint_update 3<-0 of group 1",
                            "update", "comparison of weights", "checkpoint",
                            "validation, block attend 3<-2 of group 0"}) {
    EXPECT_EQ(told[0].count(words), 1u) << words;
  }
  EXPECT_EQ(told[1].count("F1.0, block solve 2 of group 0"), 1u);
  EXPECT_EQ(told[1].count("F1.0, block solve 0 of group 0"), 0u);
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  if (const auto status = cubit::RunReaderProcess(argc, argv)) return *status;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
