// SPDX-License-Identifier: Apache-2.0
//
// //launch:train with several ranks, as a user starts it on one machine:
// layouts change between checkpoints, a rank dies, a request cannot work.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

#include "gtest/gtest.h"

#include "launch/metrics.h"
#include "runtime/file_system.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using testing::NewFolder;
using testing::Outcome;
using testing::OutcomeOf;
using testing::Program;
using testing::RunAsUser;
using testing::UserCommand;
using testing::UserEnvironment;
using testing::WriteText;

using Arguments = std::vector<std::string>;

constexpr char kTrain[] = "launch/train";

// A model whose parts every layout here can share.
const Arguments kSmall = {
    "--set=model.num_layers=2",        "--set=model.hidden_size=32",
    "--set=model.num_heads=4",         "--set=model.seq_len=64",
    "--set=batch.global_batch_size=8", "--set=batch.micro_batch_size=2",
    "--set=evaluation.max_batches=2",  "--set=log.every_steps=1"};

class ParallelTrainTest : public ::testing::Test {
 protected:
  ParallelTrainTest() : home_(NewFolder()), text_(NewFolder()) {
    for (int i = 0; i < 8; ++i) {
      std::string text;
      for (int j = 0; j < 60; ++j) {
        text += "the " + std::to_string((j * 7 + i) % 10) + " cats sat. ";
      }
      WriteText(text_ + "/document" + std::to_string(i) + ".txt", text);
    }
  }

  Arguments New(const std::string& run, const Arguments& more) const {
    Arguments all = kSmall;
    all.push_back("--data=" + text_);
    all.push_back("--output_dir=" + run);
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  void ExpectTrains(const Arguments& arguments) const {
    const Outcome result = RunAsUser(kTrain, arguments, home_);
    EXPECT_EQ(result.status, 0) << result.output;
  }

  std::string home_;
  std::string text_;
};

std::vector<double> Losses(const std::string& run) {
  const auto metrics = ReadMetrics(run + "/metrics.jsonl");
  EXPECT_TRUE(metrics.ok()) << metrics.status();
  std::vector<double> losses;
  for (const TrainMetrics& line : metrics->train) losses.push_back(line.loss);
  return losses;
}

TEST_F(ParallelTrainTest, GoesOnInAnyLayoutAsIfThereWereOne) {
  const std::string alone = home_ + "/alone";
  ExpectTrains(New(alone, {"--steps=10"}));
  const std::string run = home_ + "/run";
  ExpectTrains(New(run, {"--steps=10", "--nodes=4", "--tp=2", "--pp=2",
                         "--stop_at_step=2"}));
  const std::vector<Arguments> layouts = {
      {"--nodes=4", "--tp=1", "--pp=1", "--stop_at_step=4"},
      {"--nodes=4", "--tp=2", "--pp=1", "--cp=2", "--stop_at_step=6"},
      {"--nodes=1", "--tp=1", "--cp=1", "--stop_at_step=8"},
      {"--nodes=4", "--tp=2", "--pp=2"}};
  for (Arguments layout : layouts) {
    layout.insert(layout.end(), {"--output_dir=" + run, "--resume"});
    ExpectTrains(layout);
  }
  const std::vector<double> wanted = Losses(alone);
  const std::vector<double> losses = Losses(run);
  ASSERT_EQ(losses.size(), wanted.size());
  for (size_t step = 0; step < wanted.size(); ++step) {
    // fp32 rounding of sums in another order.
    EXPECT_NEAR(losses[step], wanted[step], 2e-6 * wanted[step]) << step;
  }
}

TEST_F(ParallelTrainTest, StartsFromExportedWeights) {
  const std::string alone = home_ + "/alone";
  const std::string exported = home_ + "/exported";
  ExpectTrains(New(alone, {"--steps=3"}));
  const Outcome result = RunAsUser(
      "launch/export", {"--checkpoint=" + alone, "--out=" + exported}, home_);
  ASSERT_EQ(result.status, 0) << result.output;
  const std::string run = home_ + "/run";
  ExpectTrains(New(run, {"--steps=1", "--nodes=4", "--tp=2", "--pp=2",
                         "--init_from=" + exported}));
  const auto first = ReadMetrics(alone + "/metrics.jsonl");
  const auto second = ReadMetrics(run + "/metrics.jsonl");
  ASSERT_TRUE(first.ok() && second.ok());
  const double wanted = first->validation.back().loss;
  EXPECT_NEAR(second->validation.front().loss, wanted, 2e-6 * wanted);
}

// Processes of worker programs that have `word` among their arguments.
std::vector<int> Workers(const std::string& word) {
  std::vector<int> pids;
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string program =
        std::filesystem::read_symlink(entry.path() / "exe", error).string();
    if (program.find("train_cpu") == std::string::npos) continue;
    std::ifstream file(entry.path() / "cmdline");
    const std::string command{std::istreambuf_iterator<char>(file), {}};
    if (command.find(word) != std::string::npos) {
      pids.push_back(std::stoi(name));
    }
  }
  std::sort(pids.begin(), pids.end());
  return pids;
}

TEST_F(ParallelTrainTest, AKilledRankEndsTheJobAndTheRunGoesOn) {
  const std::string run = home_ + "/run";
  Program job(UserCommand(kTrain, New(run, {"--steps=100000", "--nodes=3",
                                            "--set=batch.global_batch_size=6",
                                            "--set=checkpoint.every_steps=5"})),
              UserEnvironment(home_));
  ASSERT_TRUE(job.WaitForError("step 12/"));
  const std::vector<int> workers = Workers(run);
  ASSERT_GE(workers.size(), 3u);
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(kill(workers.back(), SIGKILL), 0);
  const Outcome result = OutcomeOf(job.Wait());
  const std::chrono::duration<double> seconds =
      std::chrono::steady_clock::now() - start;
  EXPECT_EQ(result.status, 2) << result.output;
  EXPECT_LT(seconds.count(), 10) << result.output;
  // The launcher's word ("killed by signal 9 (SIGKILL)") or the watchdog's
  // ("ended without a word: killed, ..."), whichever is quicker.
  EXPECT_NE(result.output.find("killed"), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("--resume"), std::string::npos) << result.output;
  EXPECT_TRUE(Workers(run).empty());
  const Outcome resumed = RunAsUser(
      kTrain,
      {"--output_dir=" + run, "--resume", "--nodes=2", "--stop_at_step=20"},
      home_);
  EXPECT_EQ(resumed.status, 0) << resumed.output;
  EXPECT_NE(resumed.output.find("resumed at step"), std::string::npos)
      << resumed.output;
}

struct BadRequest {
  const char* name;
  Arguments arguments;
  std::vector<std::string> words;
};

class BadLayoutTest : public ParallelTrainTest,
                      public ::testing::WithParamInterface<BadRequest> {};

TEST_P(BadLayoutTest, IsRefusedWithNumbersAndWritesNothing) {
  const std::string run = home_ + "/run";
  const Outcome result =
      RunAsUser(kTrain, New(run, GetParam().arguments), home_);
  EXPECT_EQ(result.status, 1) << result.output;
  for (const std::string& word : GetParam().words) {
    EXPECT_NE(result.output.find(word), std::string::npos)
        << "no \"" << word << "\" in: " << result.output;
  }
  EXPECT_FALSE(FileSystem::Posix().Exists(run));
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, BadLayoutTest,
    ::testing::Values(BadRequest{"TpDoesNotDivideHeads",
                                 {"--nodes=3", "--tp=3"},
                                 {"tp", "4", "nearest layout that works"}},
                      BadRequest{"CpTooLarge",
                                 {"--nodes=3", "--cp=3"},
                                 {"model.seq_len 64", "nearest"}},
                      BadRequest{"MoreRanksThanSequences",
                                 {"--nodes=9"},
                                 {"9 ranks", "8 sequences", "nearest"}},
                      BadRequest{"MoreStagesThanLayers",
                                 {"--nodes=4", "--pp=4"},
                                 {"model.num_layers is 2", "nearest"}},
                      BadRequest{"FewerRanksThanTheModelNeeds",
                                 {"--nodes=2", "--tp=2", "--pp=2"},
                                 {"tp x cp x pp is 4", "--nodes=4"}},
                      BadRequest{"HostFileThatIsMissing",
                                 {"--nodes=2", "--hostfile=no_such_file"},
                                 {"no_such_file"}}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace cubit
