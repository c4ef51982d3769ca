// SPDX-License-Identifier: Apache-2.0

#include "launch/launcher_environment.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

using Starter = RankEnvironment::Starter;
using ::testing::HasSubstr;

TEST(RankOf, ReadsOpenMpi) {
  const auto rank = RankOf({{"OMPI_COMM_WORLD_RANK", "5"},
                            {"OMPI_COMM_WORLD_SIZE", "8"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                            {"SLURM_PROCID", "0"},
                            {"SLURM_STEP_NUM_TASKS", "2"}});
  ASSERT_TRUE(rank.has_value());
  EXPECT_EQ(rank->starter, Starter::kMpirun);
  EXPECT_EQ(rank->rank, 5);
  EXPECT_EQ(rank->world_size, 8);
  EXPECT_EQ(rank->local_rank, 1);
  EXPECT_EQ(rank->local_size, 4);
}

TEST(RankOf, ReadsTasksOfSlurm) {
  Environment task = {
      {"SLURM_JOB_ID", "7"},         {"SLURM_PROCID", "6"},
      {"SLURM_STEP_NUM_TASKS", "7"}, {"SLURM_LOCALID", "0"},
      {"SLURM_NODEID", "3"},         {"SLURM_STEP_TASKS_PER_NODE", "2(x3),1"}};
  const auto last = RankOf(task);
  ASSERT_TRUE(last.has_value());
  EXPECT_EQ(last->starter, Starter::kSrun);
  EXPECT_EQ(last->rank, 6);
  EXPECT_EQ(last->world_size, 7);
  EXPECT_EQ(last->local_size, 1);
  task["SLURM_NODEID"] = "1";
  EXPECT_EQ(RankOf(task)->local_size, 2);
}

TEST(RankOf, ABatchScriptOfSlurmIsNoRank) {
  EXPECT_FALSE(RankOf(
      {{"SLURM_JOB_ID", "7"}, {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "16"}}));
  // An interactive step has one task.
  EXPECT_FALSE(RankOf({{"SLURM_JOB_ID", "7"},
                       {"SLURM_PROCID", "0"},
                       {"SLURM_STEP_NUM_TASKS", "1"}}));
  EXPECT_FALSE(RankOf({}));
  EXPECT_FALSE(RankOf({{"OMPI_COMM_WORLD_RANK", "x"}}));
}

TEST(RankOf, ReadsPmi) {
  const auto rank = RankOf({{"PMI_RANK", "3"},
                            {"PMI_SIZE", "4"},
                            {"MPI_LOCALRANKID", "1"},
                            {"MPI_LOCALNRANKS", "2"}});
  ASSERT_TRUE(rank.has_value());
  EXPECT_EQ(rank->rank, 3);
  EXPECT_EQ(rank->local_rank, 1);
  EXPECT_EQ(rank->local_size, 2);
}

TEST(ThreadsOfRank, DividesTheHostOnce) {
  RankEnvironment rank;
  rank.local_size = 4;
  EXPECT_EQ(ThreadsOfRank(rank, 16, 64), 4);
  EXPECT_EQ(ThreadsOfRank(rank, 2, 64), 1);
  // srun has divided it by itself, or not at all.
  rank.starter = Starter::kSrun;
  EXPECT_EQ(ThreadsOfRank(rank, 12, 64), 12);
  EXPECT_EQ(ThreadsOfRank(rank, 64, 64), 16);
}

TEST(VisibleGpuOfRank, IsTheOneOfTheLocalRank) {
  RankEnvironment rank;
  rank.local_rank = 1;
  rank.local_size = 2;
  EXPECT_EQ(*VisibleGpuOfRank(rank, {}, 2), "1");
  EXPECT_EQ(*VisibleGpuOfRank(rank, {{"CUDA_VISIBLE_DEVICES", "4,6"}}, 2), "6");
  const auto few = VisibleGpuOfRank(rank, {}, 1);
  EXPECT_EQ(few.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(few.status().message(), HasSubstr("shows it 1 GPUs"));
  rank.starter = Starter::kSrun;
  EXPECT_EQ(*VisibleGpuOfRank(rank, {{"CUDA_VISIBLE_DEVICES", "3"}}, 1), "3");
}

}  // namespace
}  // namespace cubit
