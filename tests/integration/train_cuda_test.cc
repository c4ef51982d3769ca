// SPDX-License-Identifier: Apache-2.0
//
// //launch:train on a GPU beside the CPU: the same losses, to what bf16 leaves;
// the same bits twice, resumed, and with recomputing.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "launch/gpu_probe.h"
#include "launch/metrics.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;
using testing::NewFolder;
using testing::Outcome;
using testing::RunAsUser;
using testing::WriteText;

using Arguments = std::vector<std::string>;

constexpr char kTrain[] = "launch/train";

const Arguments kSmall = {
    "--set=model.num_layers=2",          "--set=model.hidden_size=128",
    "--set=model.num_heads=2",           "--set=model.seq_len=192",
    "--set=batch.global_batch_size=4",   "--set=batch.micro_batch_size=2",
    "--set=evaluation.max_batches=2",    "--set=log.every_steps=1",
    "--set=optimizer.learning_rate=1e-3"};

// Needs the program for GPUs, and no GPU.
TEST(TrainCudaDryRun, PlansARunForAGpuThatIsElsewhere) {
  if (ProbeGpus().num_gpus > 0) GTEST_SKIP() << "skipped: a GPU is here";
  Arguments arguments = {"--dry_run",           "--device=cuda",
                         "--preset=cubit_125m", "--nodes=2",
                         "--gpus_per_node=2",   "--tp=2"};
  const Outcome unknown = RunAsUser(kTrain, arguments, NewFolder());
  EXPECT_EQ(unknown.status, 0) << unknown.output;
  EXPECT_THAT(unknown.output, HasSubstr("4 ranks = pp 1 x dp 2 x cp 1 x tp 2"));
  EXPECT_THAT(unknown.output, HasSubstr("estimate for h200"));
  arguments.push_back("--device_memory=80GB");
  const Outcome plan = RunAsUser(kTrain, arguments, NewFolder());
  EXPECT_EQ(plan.status, 0) << plan.output;
  EXPECT_THAT(plan.output, HasSubstr("estimate for h100"));
  EXPECT_THAT(plan.output, HasSubstr("micro_batch_size that fits"));
}

class TrainCudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const GpuProbe probe = ProbeGpus();
    if (probe.num_gpus == 0) {
      GTEST_SKIP() << "skipped: no GPU (" << probe.problem << ")";
    }
    home_ = NewFolder();
    text_ = NewFolder();
    for (int document = 0; document < 8; ++document) {
      std::string text;
      for (int i = 0; i < 200; ++i) {
        text += "the " + std::to_string((i * 7 + document) % 10) +
                " cats sat on the mat and looked at the dog. ";
      }
      WriteText(text_ + "/document" + std::to_string(document) + ".txt", text);
    }
  }

  Outcome Train(const std::string& run, Arguments more) const {
    Arguments all = kSmall;
    more.push_back("--data=" + text_);
    more.push_back("--output_dir=" + Run(run));
    all.insert(all.end(), more.begin(), more.end());
    return RunAsUser(kTrain, all, home_);
  }
  std::string Run(const std::string& name) const { return home_ + "/" + name; }
  std::vector<double> Losses(const std::string& run) const {
    const auto metrics = ReadMetrics(Run(run) + "/metrics.jsonl");
    EXPECT_TRUE(metrics.ok()) << metrics.status();
    std::vector<double> losses;
    for (const TrainMetrics& line : metrics->train) losses.push_back(line.loss);
    return losses;
  }
  std::vector<double> LossesOf(const std::string& run, const Arguments& more) {
    const Outcome outcome = Train(run, more);
    EXPECT_EQ(outcome.status, 0) << outcome.output;
    return Losses(run);
  }

  std::string home_;
  std::string text_;
};

TEST_F(TrainCudaTest, FollowsTheCpu) {
  for (const char* mixer : {"cubit", "softmax", "deltaformer"}) {
    const std::string name = mixer;
    const Arguments both = {"--set=model.mixer=" + name, "--steps=40"};
    Arguments cpu = both;
    cpu.push_back("--device=cpu");
    Arguments cuda = both;
    cuda.push_back("--device=cuda");
    const std::vector<double> want = LossesOf(name + "_cpu", cpu);
    const std::vector<double> got = LossesOf(name + "_cuda", cuda);
    ASSERT_EQ(want.size(), 40u);
    ASSERT_EQ(got.size(), want.size());
    for (size_t step = 0; step < want.size(); ++step) {
      ASSERT_NEAR(got[step], want[step], 0.01) << name << " step " << step + 1;
    }
  }
}

TEST_F(TrainCudaTest, GivesTheSameBitsTwiceAndResumedAndRecomputed) {
  const std::vector<double> whole = LossesOf("whole", {"--steps=12"});
  EXPECT_EQ(LossesOf("again", {"--steps=12"}), whole);
  EXPECT_EQ(LossesOf("full", {"--steps=12", "--set=memory.recompute=full"}),
            whole);
  LossesOf("parts", {"--steps=12", "--stop_at_step=5"});
  EXPECT_EQ(LossesOf("parts", {"--steps=12", "--resume"}), whole);
}

// Products that are large enough to be timed, and more steps than half an hour
// has: a process chooses again after 20 of them, and two that run fewer do not.
TEST_F(TrainCudaTest, AChoiceUnderLoadChangesNoLoss) {
  const auto train = [this](const std::string& run, Arguments more) {
    const Arguments large = {
        "--set=model.hidden_size=1024",   "--set=model.num_heads=8",
        "--set=model.seq_len=512",        "--set=batch.global_batch_size=8",
        "--set=batch.micro_batch_size=8", "--steps=10000000"};
    more.insert(more.begin(), large.begin(), large.end());
    const Outcome outcome = Train(run, more);
    EXPECT_EQ(outcome.status, 0) << outcome.output;
    return outcome.output;
  };
  EXPECT_THAT(train("whole", {"--stop_at_step=23"}),
              HasSubstr("kinds of matrix products under load"));
  train("parts", {"--stop_at_step=15"});
  train("parts", {"--stop_at_step=23", "--resume"});
  EXPECT_EQ(Losses("whole").size(), 23u);
  EXPECT_EQ(Losses("parts"), Losses("whole"));
}

TEST_F(TrainCudaTest, HoldsWhatThePlanSays) {
  const Outcome outcome = Train("run", {"--steps=3"});
  ASSERT_EQ(outcome.status, 0) << outcome.output;
  const auto metrics = ReadMetrics(Run("run") + "/metrics.jsonl");
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  const std::string label = "memory total     ";
  const size_t begin = outcome.output.find(label);
  ASSERT_NE(begin, std::string::npos);
  const double planned = std::stod(outcome.output.substr(begin + label.size()));
  // The process's own part is of the total, not of the counted.
  EXPECT_LE(static_cast<double>(metrics->train.back().memory_bytes), planned);
}

TEST_F(TrainCudaTest, RefusesWhatDoesNotFit) {
  const Outcome outcome = Train(
      "large",
      {"--set=model.num_layers=48", "--set=model.seq_len=65536",
       "--set=model.hidden_size=4096", "--set=model.num_heads=32",
       "--set=batch.global_batch_size=64", "--set=batch.micro_batch_size=64"});
  EXPECT_EQ(outcome.status, 1) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("the run needs"));
}

}  // namespace
}  // namespace cubit
