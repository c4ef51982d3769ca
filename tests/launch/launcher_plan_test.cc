// SPDX-License-Identifier: Apache-2.0

#include "launch/launcher_plan.h"

#include <unistd.h>

#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/program.h"

namespace cubit {
namespace {

using Kind = LaunchPlan::Kind;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

LaunchSite Cpus() {
  LaunchSite site;
  site.num_processors = 2;
  return site;
}

LaunchSite Gpus(int count) {
  LaunchSite site;
  site.num_gpus = count;
  site.num_processors = 64;
  return site;
}

LaunchSite Slurm(const Environment& more) {
  LaunchSite site = Cpus();
  site.environment = {{"SLURM_JOB_ID", "77"}, {"SLURM_JOB_NUM_NODES", "4"}};
  site.environment.insert(more.begin(), more.end());
  return site;
}

LaunchRequest Read(const std::vector<std::string>& arguments) {
  return ReadLaunchRequest(arguments);
}

LaunchPlan Plan(const std::vector<std::string>& arguments,
                const LaunchSite& site) {
  const auto plan = PlanLaunch(Read(arguments), site);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *plan : LaunchPlan();
}

std::string Refusal(const std::vector<std::string>& arguments,
                    const LaunchSite& site) {
  const auto plan = PlanLaunch(Read(arguments), site);
  EXPECT_FALSE(plan.ok());
  return std::string(plan.status().message());
}

std::string Command(const LaunchPlan& plan) {
  return absl::StrJoin(plan.command, " ");
}

TEST(ReadLaunchRequest, TakesSizesFromEveryPlace) {
  EXPECT_EQ(Read({}).nodes, 0);
  EXPECT_EQ(Read({"--nodes=4"}).nodes, 4);
  EXPECT_EQ(Read({"--nodes", "4", "--tp=2", "--pp=2", "--cp", "3"}).model_ranks,
            12);
  EXPECT_EQ(Read({"--set", "parallel.nodes=3"}).nodes, 3);
  EXPECT_EQ(Read({"--set=parallel.nodes=3", "--nodes=5"}).nodes, 5);
  EXPECT_EQ(Read({"--gpus_per_node=8", "--hostfile=h"}).gpus_per_node, 8);
  EXPECT_EQ(Read({"--gpus_per_node=8", "--hostfile=h"}).hostfile, "h");
  EXPECT_EQ(Read({"--preset=cubit_125m", "--nodes=2"}).nodes, 2);
}

TEST(ReadLaunchRequest, ReadsTheConfigurationOfTheRun) {
  const std::string folder = testing::NewFolder();
  testing::WriteText(folder + "/config.textproto",
                     "parallel { nodes: 6 tp_size: 2 }");
  EXPECT_EQ(Read({"--config=" + folder + "/config.textproto"}).nodes, 6);
  const LaunchRequest resumed = Read({"--resume", "--output_dir=" + folder});
  EXPECT_EQ(resumed.nodes, 6);
  EXPECT_EQ(resumed.model_ranks, 2);
}

TEST(ReadLaunchRequest, LeavesWhatItCannotReadToTheWorker) {
  for (const std::string argument :
       {"--nodes=many", "--nodes=-2", "--preset=none", "--config=/nowhere",
        "--set=parallel.nods=2", "--help", "--list_presets", "--dry_run"}) {
    EXPECT_TRUE(Read({argument}).alone) << argument;
    EXPECT_EQ(Plan({argument}, Gpus(8)).kind, Kind::kOneRank) << argument;
  }
  EXPECT_FALSE(Read({"--dry_run=false"}).alone);
}

TEST(PlanLaunch, OneRankNeedsNoStarter) {
  EXPECT_EQ(Plan({}, Cpus()).kind, Kind::kOneRank);
  EXPECT_EQ(Plan({}, Gpus(1)).kind, Kind::kOneRank);
  EXPECT_EQ(Plan({"--nodes=1"}, Cpus()).kind, Kind::kOneRank);
  EXPECT_EQ(Plan({"--gpus_per_node=1"}, Gpus(8)).kind, Kind::kOneRank);
}

TEST(PlanLaunch, EmulatesNodesOnTheCpuAndSaysSo) {
  const LaunchPlan plan = Plan({"--nodes=4", "--tp=2"}, Cpus());
  EXPECT_EQ(plan.kind, Kind::kMpirun);
  EXPECT_EQ(Command(plan), "mpirun --bind-to none --oversubscribe -np 4");
  EXPECT_EQ(plan.first_line,
            "emulating 4 nodes x 1 CPU rank on this machine: 4 ranks share 2 "
            "processors");
  EXPECT_THAT(plan.environment, IsEmpty());
  EXPECT_THAT(plan.arguments, IsEmpty());
  EXPECT_EQ(Plan({"--nodes=2", "--gpus_per_node=3"}, Cpus()).num_ranks(), 6);
}

TEST(PlanLaunch, LetsMpirunRunAsRoot) {
  LaunchSite site = Cpus();
  site.is_root = true;
  EXPECT_EQ(
      Plan({"--nodes=2"}, site).environment.count("OMPI_ALLOW_RUN_AS_ROOT"), 1);
}

TEST(PlanLaunch, TakesAllGpusOfThisMachine) {
  const LaunchPlan plan = Plan({}, Gpus(8));
  EXPECT_EQ(plan.kind, Kind::kMpirun);
  EXPECT_EQ(plan.num_ranks(), 8);
  EXPECT_EQ(plan.first_line, "8 ranks: 1 node x 8 GPUs");
  EXPECT_EQ(Plan({"--gpus_per_node=2"}, Gpus(8)).num_ranks(), 2);
}

TEST(PlanLaunch, RefusesGpusThatAreNotThere) {
  EXPECT_THAT(Refusal({"--gpus_per_node=4"}, Gpus(2)),
              AllOf(HasSubstr("--gpus_per_node=4"), HasSubstr("has 2 GPUs"),
                    HasSubstr("--hostfile")));
  EXPECT_THAT(Refusal({"--nodes=2"}, Gpus(8)),
              AllOf(HasSubstr("--nodes=2"), HasSubstr("8 GPUs"),
                    HasSubstr("--hostfile=FILE"), HasSubstr("Slurm")));
}

TEST(PlanLaunch, RefusesALayoutOfMoreRanks) {
  EXPECT_THAT(Refusal({"--tp=2"}, Cpus()),
              AllOf(HasSubstr("tp x cp x pp is 2, but there is 1 rank"),
                    HasSubstr("Give --nodes=2")));
  EXPECT_THAT(Refusal({"--tp=2", "--pp=4", "--gpus_per_node=2"}, Cpus()),
              HasSubstr("Give --nodes=4"));
  EXPECT_THAT(Refusal({"--tp=4"}, Gpus(2)),
              AllOf(HasSubstr("2 ranks"), Not(HasSubstr("Give --nodes"))));
}

TEST(PlanLaunch, RefusesASlipOfTheKeyboard) {
  EXPECT_THAT(Refusal({"--nodes=1000000", "--gpus_per_node=1000000"}, Cpus()),
              HasSubstr("1000000000000 ranks"));
}

TEST(PlanLaunch, UsesTheHostsOfAFile) {
  LaunchSite site = Cpus();
  site.hosts = HostsOf("node1 slots=8\n# node0\n\nnode2\nnode1\n");
  EXPECT_THAT(site.hosts, ElementsAre("node1", "node2"));
  site.environment = {
      {"CUBIT_LAUNCHER", "1"}, {"NCCL_DEBUG", "INFO"}, {"HOME", "/root"}};
  const LaunchPlan all = Plan({"--hostfile=h", "--gpus_per_node=8"}, site);
  EXPECT_EQ(Command(all),
            "mpirun --bind-to none --oversubscribe --hostfile h --map-by "
            "ppr:8:node -x CUBIT_LAUNCHER -x NCCL_DEBUG -np 16");
  EXPECT_THAT(all.arguments, ElementsAre("--nodes=2"));
  EXPECT_EQ(Plan({"--hostfile=h", "--nodes=1", "--gpus_per_node=8"}, site)
                .num_ranks(),
            8);
  EXPECT_THAT(Refusal({"--hostfile=h", "--nodes=3"}, site),
              HasSubstr("names 2 hosts"));
  EXPECT_THAT(Refusal({"--hostfile=h"}, Cpus()), HasSubstr("names no host"));
}

TEST(PlanLaunch, UsesTheNodesOfASlurmJob) {
  const LaunchPlan plan = Plan({}, Slurm({{"SLURM_GPUS_ON_NODE", "8"}}));
  EXPECT_EQ(plan.kind, Kind::kSrun);
  EXPECT_EQ(plan.nodes, 4);
  EXPECT_THAT(Command(plan),
              AllOf(HasSubstr("srun --mpi=pmix --nodes=4 --ntasks=32"),
                    HasSubstr("--ntasks-per-node=8")));
  EXPECT_THAT(plan.arguments, ElementsAre("--nodes=4"));
  EXPECT_EQ(Plan({}, Slurm({{"SLURM_GPUS_PER_NODE", "h100:4"}})).num_ranks(),
            16);
  const LaunchPlan some = Plan({"--nodes=2"}, Slurm({}));
  EXPECT_EQ(some.num_ranks(), 2);
  EXPECT_THAT(some.arguments, IsEmpty());
  EXPECT_EQ(Plan({"--nodes=1"}, Slurm({})).kind, Kind::kOneRank);
}

TEST(PlanLaunch, RefusesMoreThanTheSlurmJobHas) {
  EXPECT_THAT(Refusal({"--nodes=5"}, Slurm({})),
              AllOf(HasSubstr("job 77 has 4 nodes"), HasSubstr("salloc")));
  EXPECT_THAT(
      Refusal({"--gpus_per_node=9"}, Slurm({{"SLURM_GPUS_ON_NODE", "8"}})),
      HasSubstr("has 8 GPUs"));
  EXPECT_THAT(Refusal({"--hostfile=h"}, Slurm({})),
              HasSubstr("leave --hostfile out"));
}

}  // namespace
}  // namespace cubit
