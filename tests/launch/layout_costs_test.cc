// SPDX-License-Identifier: Apache-2.0

#include "launch/layout_costs.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "launch/config.h"
#include "launch/layout_report.h"
#include "launch/model_setup.h"
#include "launch/parallel_plan.h"
#include "models/language_model.h"

namespace cubit {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// Cubit of 4 layers, D 64, 4 heads of 16, F 256, V 128, T 32; 16 sequences a
// step, 2 a micro-batch; fp32.
RunConfig Small(const std::vector<std::string>& assignments) {
  RunConfig config;
  std::vector<std::string> all = {
      "model.num_layers=4",        "model.hidden_size=64",
      "model.num_heads=4",         "model.ffn_hidden_size=256",
      "model.seq_len=32",          "batch.micro_batch_size=2",
      "batch.global_batch_size=16"};
  all.insert(all.end(), assignments.begin(), assignments.end());
  for (const std::string& assignment : all) {
    const absl::Status status = ApplyOverride(assignment, &config);
    EXPECT_TRUE(status.ok()) << status;
  }
  return ResolveConfig(config);
}

struct Layout {
  RunConfig config;
  ModelConfig model;
  ParallelPlan plan;
  LayoutCosts costs;
};

Layout Make(const std::vector<std::string>& assignments, int world_size) {
  const RunConfig config = Small(assignments);
  const ModelConfig model = *MakeModelConfig(config, 128);
  const auto plan = MakeParallelPlan(config, model, world_size, "cpu");
  EXPECT_TRUE(plan.ok()) << plan.status();
  return {config, model, *plan, *MakeLayoutCosts(*plan, config, model)};
}

const std::vector<std::string> kAllAxes = {
    "parallel.tp_size=2", "parallel.cp_size=2", "parallel.pp_size=2",
    "parallel.cp_method=ulysses"};

// tp 2, cp 2, dp 2, pp 2: four micro-batches, two layers a stage. A rank sees
// 2 x 16 rows of a micro-batch, 32 x 64 x 4 = 8192 bytes, of which a rank sends
// a group of two half: 4096.
TEST(MakeLayoutCosts, CountsWhatIsSent) {
  const Layout layout = Make(kAllAxes, 16);
  ASSERT_EQ(layout.costs.stages.size(), 2u);
  const StageCosts& first = layout.costs.stages[0];
  const StageCosts& last = layout.costs.stages[1];
  // 10 a layer, 2 of the embedding.
  EXPECT_EQ(first.tp_bytes, 4 * (2 * 10 + 2) * 4096);
  // 2 of the head, and 3 numbers of each of the 32 rows.
  EXPECT_EQ(last.tp_bytes, 4 * ((2 * 10 + 2) * 4096 + 32 * 12));
  // Half of 32 rows of 2 heads with 4 x 16 + 1 columns and 16 of the result,
  // there and back, in two layers.
  const int columns = 2 * (65 + 16);
  EXPECT_EQ(first.cp_bytes, 4 * 2 * 2 * (32 * columns * 4 / 2));
  // One border, half of the rows on each tp rank.
  EXPECT_EQ(first.pp_bytes, 4 * 4096);
  EXPECT_EQ(last.pp_bytes, 4 * 4096);
  // 3/4 of the gradients, and of the weights, leave a rank of four.
  EXPECT_EQ(first.gradient_bytes,
            static_cast<double>(3 * first.num_parameters));
  EXPECT_EQ(first.weight_bytes, first.gradient_bytes);
}

// 64 rows of 64 numbers, 16,384 bytes, and of 128 logits, 32,768.
TEST(MakeLayoutCosts, CountsPassesOverMemory) {
  const PartCosts alone = Make({}, 1).costs.parts[0];
  EXPECT_EQ(alone.forward.memory_bytes, 4 * 11 * 16384 + 2 * 32768);
  EXPECT_EQ(alone.backward.memory_bytes, 4 * 17 * 16384);
  // Sums of rows, two a layer and one of the embedding or the head: two terms
  // of 16,384 bytes in whole, and as much of what is added to and of the sum.
  const PartCosts tp = Make({"parallel.tp_size=2"}, 2).costs.parts[0];
  const int sums = (2 * 4 + 1) * 2 * 16384;
  EXPECT_EQ(tp.forward.memory_bytes, 4 * 11 * 16384 / 2 + sums + 3 * 32768 / 2);
  EXPECT_EQ(tp.backward.memory_bytes, 4 * 17 * 16384 / 2 + sums);
  // The loss is one message.
  EXPECT_EQ(tp.forward.tp_messages, 4 * 4 + 2 + 1);
}

TEST(MakeLayoutCosts, CountsTheWavefrontAndAllReduce) {
  const Layout layout =
      Make({"parallel.cp_size=4", "parallel.cp_method=wavefront",
            "parallel.zero_stage=0"},
           4);
  const StageCosts& costs = layout.costs.stages[0];
  EXPECT_EQ(layout.plan.num_micro_batches, 8);
  // 3 + 7 tensors of 2 x 8 rows of 64 numbers, to three others.
  EXPECT_EQ(costs.cp_bytes, 8 * 4 * 10 * (3 * 16 * 64 * 4));
  EXPECT_EQ(costs.gradient_bytes,
            static_cast<double>(2 * 3 * costs.num_parameters));
  EXPECT_EQ(costs.weight_bytes, 0);
  EXPECT_EQ(costs.tp_bytes, 0);
  EXPECT_EQ(costs.pp_bytes, 0);
}

TEST(MakeLayoutCosts, OneRankSendsNothing) {
  const StageCosts costs = Make({}, 1).costs.stages[0];
  EXPECT_EQ(costs.tp_bytes + costs.cp_bytes + costs.pp_bytes +
                costs.gradient_bytes + costs.weight_bytes,
            0);
}

// Both chunks of a rank have a part before and a part after them, but for the
// first and the last of the model.
TEST(MakeLayoutCosts, InterleavedStagesSendForEveryChunk) {
  const Layout layout =
      Make({"parallel.pp_size=2", "parallel.pipeline_schedule=interleaved"}, 2);
  for (const StageCosts& stage : layout.costs.stages) {
    EXPECT_EQ(stage.pp_bytes, 8 * 3 * (2 * 32 * 64 * 4));
  }
}

// Whatever the layout, all ranks together do the model's FLOPs and hold every
// cut parameter once in a data-parallel replica.
TEST(MakeLayoutCosts, RanksShareTheModel) {
  for (const bool all_axes : {false, true}) {
    const Layout layout = all_axes ? Make(kAllAxes, 16) : Make({}, 2);
    const auto model = *LanguageModel::Create(layout.model);
    double flops = 0;
    for (const StageCosts& stage : layout.costs.stages) {
      flops += stage.step_model_flops;
    }
    const auto ranks_of_stage =
        static_cast<double>(layout.plan.mesh.world_size()) /
        static_cast<double>(layout.costs.stages.size());
    EXPECT_DOUBLE_EQ(flops * ranks_of_stage, model->TrainFlops(16, 32));
  }
}

// In rows of 32: columns 2 x 65, solution and result 2 x 2 x 16, the MLP's
// 128 twice, and four rows of 64 / 2 (norms, residual, result).
TEST(MakeLayoutCosts, CountsWhatIsKept) {
  const Layout layout = Make(kAllAxes, 16);
  const double layer = 32 * 4 * (130 + 64 + 2 * 128 + 4 * 32);
  EXPECT_EQ(layout.costs.stages[0].activation_bytes, 2 * 2 * layer);
  EXPECT_EQ(layout.costs.stages[1].activation_bytes, 1 * 2 * layer);
  std::vector<std::string> thrifty = kAllAxes;
  thrifty.push_back("memory.recompute=full");
  EXPECT_EQ(Make(thrifty, 16).costs.stages[0].activation_bytes,
            2 * 2 * 32 * 4 * 32);
  // Three norms, columns, a result, the MLP; 128 / 2 logits of 32 rows.
  EXPECT_EQ(layout.costs.stages[0].workspace_bytes,
            32 * 4 * (3 * 32 + 130 + 32 + 128));
  EXPECT_EQ(layout.costs.stages[1].workspace_bytes,
            32 * 4 * (3 * 32 + 130 + 32 + 128 + 64));
  // On shards P X besides, 2 x 16.
  std::vector<std::string> shards = kAllAxes;
  shards.back() = "parallel.cp_method=wavefront";
  EXPECT_EQ(Make(shards, 16).costs.stages[0].activation_bytes,
            2 * 2 * (layer + 32 * 4 * 32));
  // Weights, gradients, and a quarter of two moments.
  EXPECT_EQ(layout.costs.stages[0].state_bytes,
            10 * static_cast<double>(layout.costs.stages[0].num_parameters));
}

TEST(LayoutReport, SaysWhatARunNeeds) {
  const Layout layout = Make(kAllAxes, 16);
  EXPECT_THAT(DistinctRanks(layout.plan), ElementsAre(0, 8));
  std::vector<RankMemory> memory(2);
  memory[0].use[MemoryCategory::kActivations] = 3 << 20;
  memory[1].rank = 8;
  memory[1].use[MemoryCategory::kActivations] = 4 << 20;
  memory[1].use[MemoryCategory::kOptimizer] = 1 << 20;
  EXPECT_EQ(LargestRank(memory).rank, 8);
  const auto report = LayoutReport(layout.plan, layout.config, layout.model,
                                   memory, MachineModelOf("cpu"));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(*report,
              AllOf(HasSubstr("16 ranks = pp 2 x dp 2 x cp 2 x tp 2"),
                    HasSubstr("sequences by         ulysses: asked for"),
                    HasSubstr("rank 0 3.0 MiB, rank 8 5.0 MiB"),
                    HasSubstr("5242880 bytes (5.0 MiB), rank 8"),
                    HasSubstr("  optimizer          1048576 bytes (1.0 MiB)"),
                    HasSubstr("   352.0 KiB   162.0 KiB    16.0 KiB"),
                    HasSubstr("estimate for cpu, 16 ranks a node"),
                    HasSubstr("pipeline bubble"), Not(HasSubstr("warning"))));
}

}  // namespace
}  // namespace cubit
