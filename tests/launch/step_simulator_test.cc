// SPDX-License-Identifier: Apache-2.0

#include "launch/step_simulator.h"

#include <chrono>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "launch/config.h"
#include "launch/model_setup.h"
#include "launch/presets.h"

namespace cubit {
namespace {

using testing::AllOf;
using testing::HasSubstr;

struct Layout {
  ParallelPlan plan;
  LayoutCosts costs;
};

Layout Make(const std::string& preset,
            const std::vector<std::string>& assignments, int world_size,
            const std::string& device = "cpu") {
  RunConfig config = *LoadPreset(preset);
  for (const std::string& assignment : assignments) {
    const absl::Status status = ApplyOverride(assignment, &config);
    EXPECT_TRUE(status.ok()) << status;
  }
  config = ResolveConfig(config);
  ModelConfig model = *MakeModelConfig(config, 50257);
  if (device == "cuda") model.logits_chunk_bytes = int64_t{1} << 30;
  const auto plan = MakeParallelPlan(config, model, world_size, device);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return {*plan, *MakeLayoutCosts(*plan, config, model)};
}

// In bf16 on GPUs, all sequences of a step in one micro-batch, spread over
// cp_size ranks.
Layout OnGpus(const std::string& preset, int seq_len, int sequences,
              int cp_size = 1, const std::string& cp_method = "auto") {
  return Make(
      preset,
      {"precision.compute=bf16", absl::StrCat("model.seq_len=", seq_len),
       absl::StrCat("parallel.cp_size=", cp_size),
       absl::StrCat("parallel.cp_method=", cp_method),
       absl::StrCat("batch.micro_batch_size=", sequences),
       absl::StrCat("batch.global_batch_size=", sequences)},
      cp_size, "cuda");
}

StepEstimate Simulate(const Layout& layout, const MachineModel& machine,
                      MessageMode mode = MessageMode::kBlocking) {
  const auto estimate = SimulateStep(layout.plan, layout.costs, machine, mode);
  EXPECT_TRUE(estimate.ok()) << estimate.status();
  return *estimate;
}

MachineModel WithLinks(double bandwidth, double latency_s) {
  MachineModel machine = MachineModelOf("cpu");
  machine.intra_node = {bandwidth, latency_s};
  machine.inter_node = machine.intra_node;
  return machine;
}

double SumOfParts(const StepEstimate& estimate) {
  return estimate.compute + estimate.tp + estimate.cp + estimate.bubble +
         estimate.pp + estimate.gradients + estimate.weights +
         estimate.optimizer;
}

TEST(SimulateStep, EqualStagesAndFreeLinksHaveTheIdealBubble) {
  const MachineModel free = WithLinks(1e30, 0);
  for (const char* schedule : {"gpipe", "one_f_one_b", "interleaved"}) {
    for (const int stages : {2, 4}) {
      Layout layout =
          Make("cubit_125m",
               {absl::StrCat("parallel.pp_size=", stages),
                absl::StrCat("parallel.pipeline_schedule=", schedule)},
               stages);
      for (PartCosts& part : layout.costs.parts) part = layout.costs.parts[0];
      // Interleaved batches of messages that are waited for would add to it
      // where a backward is longer than a forward.
      const StepEstimate estimate =
          Simulate(layout, free,
                   layout.plan.num_chunks == 1 ? MessageMode::kBlocking
                                               : MessageMode::kAsynchronous);
      EXPECT_NEAR(estimate.bubble_fraction,
                  IdealBubbleFraction(layout.plan.pipeline_shape()), 1e-12)
          << schedule << " " << stages;
      EXPECT_NEAR(estimate.bubble / (estimate.bubble + estimate.compute),
                  estimate.bubble_fraction, 1e-12);
      EXPECT_NEAR(estimate.pp + estimate.gradients, 0, 1e-12);
    }
  }
}

TEST(SimulateStep, OneRankOnlyComputes) {
  const StepEstimate estimate =
      Simulate(Make("cubit_125m", {}, 1), MachineModelOf("cpu"));
  EXPECT_EQ(estimate.tp + estimate.cp + estimate.pp + estimate.gradients +
                estimate.weights,
            0);
  EXPECT_NEAR(estimate.bubble, 0, 1e-9);
  EXPECT_NEAR(estimate.step, estimate.compute + estimate.optimizer, 1e-9);
}

const std::vector<std::string> kAllAxes = {
    "parallel.tp_size=2", "parallel.cp_size=2", "parallel.pp_size=2",
    "batch.micro_batch_size=1"};

TEST(SimulateStep, PartsAddUpToTheStep) {
  for (const char* schedule : {"gpipe", "one_f_one_b", "interleaved"}) {
    for (const char* method : {"ulysses", "wavefront"}) {
      std::vector<std::string> assignments = kAllAxes;
      assignments.push_back(
          absl::StrCat("parallel.pipeline_schedule=", schedule));
      assignments.push_back(absl::StrCat("parallel.cp_method=", method));
      const StepEstimate estimate =
          Simulate(Make("cubit_125m", assignments, 16), MachineModelOf("cpu"));
      EXPECT_NEAR(SumOfParts(estimate), estimate.step, 1e-9 * estimate.step);
      EXPECT_GT(estimate.tp, 0);
      EXPECT_GT(estimate.cp, 0);
      EXPECT_GE(estimate.bubble, 0);
      EXPECT_GT(estimate.utilization, 0);
      EXPECT_LT(estimate.utilization, 1);
    }
  }
}

TEST(SimulateStep, FasterLinksNeverCostTime) {
  for (const char* method : {"ulysses", "wavefront"}) {
    std::vector<std::string> assignments = kAllAxes;
    assignments.push_back(absl::StrCat("parallel.cp_method=", method));
    const Layout layout = Make("cubit_125m", assignments, 16);
    double before = 1e30;
    for (int exponent = 7; exponent < 14; ++exponent) {
      const double bandwidth = std::pow(10.0, exponent);
      const double step = Simulate(layout, WithLinks(bandwidth, 1e-5)).step;
      EXPECT_LT(step, before) << method << " at " << bandwidth;
      before = step;
    }
  }
}

TEST(SimulateStep, GradientsHideBehindTheBackwardButForTheLastLayer) {
  const Layout layout = Make("cubit_125m", {"batch.micro_batch_size=4"}, 2);
  const auto transfer = [&](double bandwidth) {
    return layout.costs.stages[0].gradient_bytes / bandwidth;
  };
  // Little to send: of 12 layers the last shows.
  const double fast = 1e11;
  EXPECT_NEAR(Simulate(layout, WithLinks(fast, 0)).gradients,
              transfer(fast) / 12, 1e-12);
  // Much: a backward of one micro-batch is hidden, without its first layer.
  const double slow = 1e6;
  const StepEstimate estimate = Simulate(layout, WithLinks(slow, 0));
  const double backward = estimate.pipeline.timeline[0][1].end -
                          estimate.pipeline.timeline[0][1].start;
  EXPECT_NEAR(estimate.gradients, transfer(slow) - backward * 11 / 12, 1e-6);
  EXPECT_GT(estimate.weights, 0);
}

TEST(SimulateStep, ALayerWaitsForItsOwnWeights) {
  const Layout layout = Make("cubit_125m", {"batch.micro_batch_size=4"}, 2);
  const double all = layout.costs.stages[0].weight_bytes / 1e11;
  // Of 12 layers the first hides behind nothing; no other is late.
  EXPECT_NEAR(Simulate(layout, WithLinks(1e11, 0)).weights, all / 12,
              0.01 * all);
}

TEST(SimulateStep, HiddenTransfersSlowWhatHidesThem) {
  const Layout layout = Make("cubit_125m", {"batch.micro_batch_size=4"}, 2);
  MachineModel machine = WithLinks(1e11, 0);
  const double free = Simulate(layout, machine).gradients;
  machine.device.hidden_transfer_cost = 0.5;
  const double hidden = layout.costs.stages[0].gradient_bytes / 1e11 - free;
  EXPECT_NEAR(Simulate(layout, machine).gradients, free + hidden / 2, 1e-12);
}

TEST(MixerRate, IsSlowerOnShortSequencesAndNarrowHeads) {
  const MixerRate rate = {0.5, 1024, 64, 1};
  EXPECT_NEAR(rate.Seconds(1e12, 1e12, int64_t{1} << 40, 128), 3, 1e-6);
  EXPECT_NEAR(rate.Seconds(1e12, 1e12, 1024, 128), 5, 1e-12);
  EXPECT_NEAR(rate.Seconds(1e12, 1e12, 1024, 64), 1 + 16.0 / 3, 1e-12);
}

TEST(SimulateStep, UlyssesCopiesWhateverTheLinks) {
  const Layout layout = Make(
      "cubit_125m", {"parallel.cp_size=2", "parallel.cp_method=ulysses"}, 2);
  // A rank sends half of what is packed and unpacked, each a read and a write.
  EXPECT_NEAR(Simulate(layout, WithLinks(1e30, 0)).cp,
              4 * 2 * layout.costs.stages[0].cp_bytes /
                  MachineModelOf("cpu").device.memory_bandwidth,
              1e-9);
}

TEST(SimulateStep, GroupsBeyondANodeUseItsNetwork) {
  MachineModel machine = MachineModelOf("h100");
  const std::vector<std::string> near = {"parallel.tp_size=4"};
  const std::vector<std::string> far = {"parallel.tp_size=4",
                                        "parallel.nodes=2"};
  const double inside =
      Simulate(Make("cubit_125m", near, 4, "cuda"), machine).tp;
  const double across =
      Simulate(Make("cubit_125m", far, 4, "cuda"), machine).tp;
  EXPECT_GT(across, 3 * inside);
}

// Measured on H200s, 2026-11, bf16, random tokens; two times are of two GPUs.
// Memory is that of the exact plans, in GiB.
TEST(SimulateStep, AgreesWithOneGpu) {
  struct Measured {
    const char* preset;
    int seq_len;
    int sequences;
    std::vector<double> steps;
    double memory;
  };
  for (const Measured& run :
       {Measured{"cubit_125m", 1024, 32, {0.0772, 0.0763}, 14.63},
        Measured{"cubit_350m", 1024, 32, {0.2068, 0.2017}, 36.30},
        Measured{"cubit_1p3b", 1024, 16, {0.2937, 0.2889}, 54.39},
        Measured{"cubit_1p3b", 8192, 2, {0.5306, 0.5181}, 54.39},
        Measured{"cubit_1p3b", 32768, 1, {3.1205, 3.1596}, 82.57},
        Measured{"transformer_125m", 1024, 32, {0.0591, 0.0570}, 13.23},
        Measured{"transformer_350m", 1024, 32, {0.1578, 0.1545}, 32.57},
        Measured{"transformer_1p3b", 1024, 16, {0.2415, 0.2359}, 49.48},
        Measured{"transformer_1p3b", 8192, 2, {0.3271, 0.3157}, 49.48}}) {
    const Layout layout = OnGpus(run.preset, run.seq_len, run.sequences);
    const StepEstimate estimate = Simulate(layout, MachineModelOf("h200"));
    for (const double step : run.steps) {
      EXPECT_NEAR(estimate.step / step, 1, 0.05)
          << run.preset << " T " << run.seq_len;
    }
    EXPECT_NEAR(estimate.largest_bytes / (1 << 30), run.memory,
                0.03 * run.memory)
        << run.preset;
  }
}

// Measured on two H200s of one host, 2026-11, 16,384 tokens a rank and step at
// T = 1024; the pipeline by the kernels before docs/decisions/0028.
TEST(SimulateStep, AgreesWithTwoGpus) {
  struct Measured {
    const char* name;
    std::vector<std::string> layout;
    int micro_batch;
    double step_125m;
    double step_1p3b;
  };
  for (const Measured& run :
       {Measured{"dp2", {}, 16, 0.0420, 0.3109},
        Measured{"tp2", {"parallel.tp_size=2"}, 32, 0.0558, 0.3533},
        Measured{"cp2-ulysses",
                 {"parallel.cp_size=2", "parallel.cp_method=ulysses"},
                 32,
                 0.0534,
                 0.3547},
        Measured{
            "pp2-interleaved-m8",
            {"parallel.pp_size=2", "parallel.pipeline_schedule=interleaved"},
            4,
            0.07060,
            0.38942}}) {
    for (const char* preset : {"cubit_125m", "cubit_1p3b"}) {
      std::vector<std::string> assignments = run.layout;
      assignments.push_back("precision.compute=bf16");
      assignments.push_back("batch.global_batch_size=32");
      assignments.push_back(
          absl::StrCat("batch.micro_batch_size=", run.micro_batch));
      const Layout layout = Make(preset, assignments, 2, "cuda");
      const double measured =
          preset[6] == '1' && preset[7] == '2' ? run.step_125m : run.step_1p3b;
      EXPECT_NEAR(Simulate(layout, MachineModelOf("h200")).step / measured, 1,
                  0.1)
          << preset << " " << run.name;
    }
  }
}

TEST(SimulateStep, TakesThousandsOfRanks) {
  const auto start = std::chrono::steady_clock::now();
  const Layout layout =
      Make("cubit_1p3b",
           {"parallel.tp_size=8", "parallel.pp_size=8", "parallel.nodes=512",
            "batch.micro_batch_size=1", "batch.global_batch_size=4096",
            "precision.compute=bf16"},
           4096, "cuda");
  const StepEstimate estimate = Simulate(layout, MachineModelOf("h100"));
  const std::chrono::duration<double> elapsed =
      std::chrono::steady_clock::now() - start;
  EXPECT_EQ(layout.plan.num_micro_batches, 64);
  EXPECT_GT(estimate.utilization, 0.01);
  EXPECT_LT(elapsed.count(), 1.0);
  EXPECT_THAT(estimate.ToString(),
              AllOf(HasSubstr("computation"), HasSubstr("tp, waiting"),
                    HasSubstr("largest rank")));
}

// Measured on four H200s of one host, 2026-11, Cubit 1.3B, T = 1024, 16,384
// tokens a rank and step.
TEST(SimulateStep, AgreesWithFourGpus) {
  struct Measured {
    const char* name;
    std::vector<std::string> layout;
    int micro_batch;
    double step;
  };
  for (const Measured& run :
       {Measured{"dp4", {}, 16, 0.3157},
        Measured{"tp4", {"parallel.tp_size=4"}, 64, 0.4337},
        Measured{"cp4-ulysses",
                 {"parallel.cp_size=4", "parallel.cp_method=ulysses"},
                 64,
                 0.3669},
        Measured{
            "pp4-1f1b-m16",
            {"parallel.pp_size=4", "parallel.pipeline_schedule=one_f_one_b"},
            4,
            0.3780}}) {
    std::vector<std::string> assignments = run.layout;
    assignments.push_back("precision.compute=bf16");
    assignments.push_back("batch.global_batch_size=64");
    assignments.push_back(
        absl::StrCat("batch.micro_batch_size=", run.micro_batch));
    const Layout layout = Make("cubit_1p3b", assignments, 4, "cuda");
    const double step = Simulate(layout, MachineModelOf("h200")).step;
    EXPECT_NEAR(step / run.step, 1, 0.1) << run.name;
  }
}

// Measured on two and four H200s of one host, 2026-11, by the kernels of
// docs/decisions/0032; the last wavefront before two warpgroups shared tiles.
TEST(SimulateStep, AgreesWithSequencesOverGpus) {
  struct Measured {
    const char* preset;
    const char* method;
    int seq_len;
    int cp_size;
    int sequences;
    double step;
  };
  for (const Measured& run :
       {Measured{"cubit_125m", "wavefront", 1024, 2, 32, 0.12183},
        Measured{"cubit_1p3b", "wavefront", 1024, 2, 32, 0.54572},
        Measured{"cubit_1p3b", "wavefront", 8192, 2, 4, 0.81866},
        Measured{"cubit_1p3b", "wavefront", 8192, 4, 8, 1.01895},
        Measured{"cubit_1p3b", "wavefront", 32768, 2, 2, 3.17787},
        Measured{"cubit_1p3b", "wavefront", 32768, 4, 4, 3.65989},
        Measured{"cubit_1p3b", "ulysses", 32768, 2, 2, 3.35482},
        Measured{"cubit_1p3b", "ulysses", 32768, 4, 4, 3.40121},
        Measured{"transformer_1p3b", "ulysses", 8192, 2, 4, 0.37843},
        Measured{"transformer_1p3b", "ring", 1024, 2, 32, 0.33151},
        Measured{"transformer_1p3b", "ring", 8192, 2, 4, 0.42929}}) {
    const Layout layout =
        OnGpus(run.preset, run.seq_len, run.sequences, run.cp_size, run.method);
    const double step = Simulate(layout, MachineModelOf("h200")).step;
    EXPECT_NEAR(step / run.step, 1, 0.1)
        << run.preset << " T " << run.seq_len << " cp " << run.cp_size << " "
        << run.method;
  }
}

// What was faster on two and four H200s of one host (docs/performance.md).
TEST(MakeParallelPlan, AutoTakesTheFasterWayOnGpus) {
  struct Measured {
    const char* preset;
    int seq_len;
    int cp_size;
    int sequences;
    CpMethod faster;
  };
  for (const Measured& run :
       {Measured{"cubit_125m", 1024, 2, 32, CpMethod::kUlysses},
        Measured{"cubit_1p3b", 1024, 2, 32, CpMethod::kUlysses},
        Measured{"cubit_1p3b", 1024, 4, 64, CpMethod::kUlysses},
        Measured{"cubit_1p3b", 8192, 2, 4, CpMethod::kUlysses},
        Measured{"cubit_1p3b", 8192, 4, 8, CpMethod::kUlysses},
        Measured{"cubit_1p3b", 32768, 2, 2, CpMethod::kSharded},
        Measured{"cubit_1p3b", 32768, 4, 4, CpMethod::kUlysses},
        Measured{"transformer_1p3b", 1024, 2, 32, CpMethod::kUlysses},
        Measured{"transformer_1p3b", 8192, 2, 4, CpMethod::kUlysses}}) {
    const Layout layout =
        OnGpus(run.preset, run.seq_len, run.sequences, run.cp_size);
    EXPECT_EQ(layout.plan.cp_method, run.faster)
        << run.preset << " T " << run.seq_len << " cp " << run.cp_size << ": "
        << layout.plan.cp_reason;
  }
}

// cuDNN's backward keeps its scores; beyond a limit another one serves.
TEST(SimulateStep, ScoresBeyondTheLimitOfAGpuTakeLonger) {
  const MachineModel machine = MachineModelOf("h200");
  MachineModel unlimited = machine;
  unlimited.device.most_score_bytes = 0;
  const auto ratio = [&](int seq_len) {
    const Layout layout =
        Make("cubit_1p3b_figure",
             {absl::StrCat("model.seq_len=", seq_len),
              "batch.micro_batch_size=1", "batch.global_batch_size=2"},
             1, "cuda");
    return Simulate(layout, machine).compute /
           Simulate(layout, unlimited).compute;
  };
  EXPECT_EQ(ratio(8192), 1);
  EXPECT_GT(ratio(32768), 1.1);
}

}  // namespace
}  // namespace cubit
