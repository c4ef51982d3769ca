// SPDX-License-Identifier: Apache-2.0

#include "launch/parallel_plan.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "launch/config.h"
#include "launch/model_costs.h"
#include "launch/model_setup.h"
#include "launch/presets.h"
#include "models/language_model.h"

namespace cubit {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

// 12 layers, 12 heads of 64, ffn 3072, T 1024, global batch 32.
RunConfig With(const std::vector<std::string>& assignments) {
  RunConfig config = *LoadPreset("cubit_125m");
  for (const std::string& assignment : assignments) {
    const absl::Status status = ApplyOverride(assignment, &config);
    EXPECT_TRUE(status.ok()) << status;
  }
  return ResolveConfig(config);
}

absl::StatusOr<ParallelPlan> Plan(const RunConfig& config, int world_size,
                                  const std::string& device = "cpu") {
  return MakeParallelPlan(config, *MakeModelConfig(config, 50257), world_size,
                          device);
}

ParallelPlan GoodPlan(const std::vector<std::string>& assignments,
                      int world_size, const std::string& device = "cpu") {
  const auto plan = Plan(With(assignments), world_size, device);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *plan : ParallelPlan(*DeviceMesh::Create(1, 1, 1, 1));
}

std::string Problem(const std::vector<std::string>& assignments, int world_size,
                    const std::string& device = "cpu") {
  const auto plan = Plan(With(assignments), world_size, device);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument)
      << absl::StrJoin(assignments, " ");
  return std::string(plan.status().message());
}

// The flags that an error names, as assignments.
std::vector<std::string> Suggested(const std::string& message) {
  const std::string marker = "nearest layout that works: ";
  const size_t begin = message.find(marker);
  EXPECT_NE(begin, std::string::npos) << message;
  if (begin == std::string::npos) return {};
  std::string line = message.substr(begin + marker.size());
  line = line.substr(0, line.find('\n'));
  std::vector<std::string> assignments;
  const std::vector<std::string> words = absl::StrSplit(line, ' ');
  for (std::string word : words) {
    if (word == "--set") continue;
    for (const char* axis : {"tp", "cp", "pp"}) {
      const std::string flag = absl::StrCat("--", axis, "=");
      if (word.rfind(flag, 0) == 0) {
        word =
            absl::StrCat("parallel.", axis, "_size=", word.substr(flag.size()));
      }
    }
    assignments.push_back(word);
  }
  return assignments;
}

// The error, after its suggestion has been found to work.
std::string Fixable(std::vector<std::string> assignments, int world_size,
                    const std::string& device = "cpu") {
  std::string message = Problem(assignments, world_size, device);
  for (const std::string& change : Suggested(message)) {
    assignments.push_back(change);
  }
  const auto plan = Plan(With(assignments), world_size, device);
  EXPECT_TRUE(plan.ok()) << message << "\nthen: " << plan.status();
  return message;
}

std::string Sizes(const std::vector<LayerRange>& parts) {
  std::vector<int64_t> sizes;
  int64_t begin = 0;
  for (const LayerRange& part : parts) {
    EXPECT_EQ(part.begin, begin);
    sizes.push_back(part.count);
    begin += part.count;
  }
  return absl::StrJoin(sizes, " ");
}

TEST(BalanceLayers, GivesTheHeadsStageFewerLayers) {
  EXPECT_EQ(Sizes(BalanceLayers(12, 1, 0)), "12");
  EXPECT_EQ(Sizes(BalanceLayers(12, 2, 0)), "6 6");
  EXPECT_EQ(Sizes(BalanceLayers(13, 2, 0)), "6 7");
  EXPECT_EQ(Sizes(BalanceLayers(14, 4, 0)), "3 3 4 4");
  // The head is as long as four layers: 16 in all, 4 a stage.
  EXPECT_EQ(Sizes(BalanceLayers(15, 4, 1)), "4 4 4 3");
  EXPECT_EQ(Sizes(BalanceLayers(12, 2, 4)), "8 4");
  // No stage is empty, however long the head.
  EXPECT_EQ(Sizes(BalanceLayers(6, 3, 50)), "2 3 1");
  EXPECT_EQ(Sizes(BalanceLayers(4, 4, 50)), "1 1 1 1");
}

double Largest(int64_t a, int64_t b, int64_t c, double head) {
  return std::max(static_cast<double>(std::max(a, b)),
                  static_cast<double>(c) + head);
}

// The smallest largest cost of three runs, by trying all of them.
double BestOfThree(int64_t layers, double head) {
  double best = 1e9;
  for (int64_t a = 1; a < layers - 1; ++a) {
    for (int64_t b = 1; a + b < layers; ++b) {
      best = std::min(best, Largest(a, b, layers - a - b, head));
    }
  }
  return best;
}

TEST(BalanceLayers, IsOptimal) {
  for (int64_t layers = 3; layers <= 9; ++layers) {
    for (const double head : {0.0, 0.4, 1.5, 3.0}) {
      const std::vector<LayerRange> parts = BalanceLayers(layers, 3, head);
      EXPECT_DOUBLE_EQ(
          Largest(parts[0].count, parts[1].count, parts[2].count, head),
          BestOfThree(layers, head))
          << layers << " layers, head " << head;
    }
  }
}

TEST(MakeParallelPlan, OneRankHoldsEverything) {
  const ParallelPlan plan = GoodPlan({}, 1);
  EXPECT_EQ(plan.num_micro_batches, 8);
  EXPECT_EQ(plan.cp_reason, "");
  const ModelShard shard = plan.ShardOf(0);
  ASSERT_EQ(shard.chunks.size(), 1u);
  EXPECT_EQ(shard.chunks[0].count, 12);
  EXPECT_TRUE(shard.embedding);
  EXPECT_TRUE(shard.head);
  EXPECT_EQ(plan.ToString(),
            "1 ranks = pp 1 x dp 1 x cp 1 x tp 1; layers 0-11; 1f1b of 8 "
            "micro-batches");
}

// Adds one to every layer that the shard holds.
void Count(const ModelShard& shard, std::vector<int>* holders) {
  for (const LayerRange& range : shard.chunks) {
    for (int64_t i = 0; i < range.count; ++i) {
      ++(*holders)[static_cast<size_t>(range.begin + i)];
    }
  }
}

// Over the ranks of one tp x cp slice, every layer is held once.
TEST(MakeParallelPlan, StagesHoldEveryLayerOnce) {
  for (const char* schedule : {"gpipe", "one_f_one_b", "interleaved"}) {
    const ParallelPlan plan =
        GoodPlan({"parallel.tp_size=2", "parallel.pp_size=4",
                  absl::StrCat("parallel.pipeline_schedule=", schedule)},
                 16);
    EXPECT_EQ(plan.num_micro_batches, 4);
    std::vector<int> holders(12);
    int heads = 0;
    for (int rank = 0; rank < 16; ++rank) {
      const ModelShard shard = plan.ShardOf(rank);
      EXPECT_EQ(shard.tp_rank, rank % 2);
      EXPECT_EQ(shard.chunks.size(), plan.num_chunks);
      if (rank % 4 != 0) continue;  // tp 0, dp 0
      heads += shard.head;
      EXPECT_EQ(shard.embedding, rank == 0);
      Count(shard, &holders);
    }
    EXPECT_EQ(heads, 1);
    EXPECT_EQ(holders, std::vector<int>(12, 1)) << schedule;
  }
}

TEST(MakeParallelPlan, InterleavedChunksGoRound) {
  const ParallelPlan plan = GoodPlan(
      {"parallel.pp_size=2", "parallel.pipeline_schedule=interleaved"}, 2);
  ASSERT_EQ(plan.parts.size(), 4u);
  const ModelShard second = plan.ShardOf(1);
  EXPECT_EQ(second.chunks[0].begin, plan.parts[1].begin);
  EXPECT_EQ(second.chunks[1].begin, plan.parts[3].begin);
}

// A token costs a layer 7.7 M weights and as much as 1.6 M more in the mixer,
// the head 38.6 M: as much as 4.2 layers.
TEST(MakeParallelPlan, CountsTheHeadInTheBalance) {
  EXPECT_EQ(Sizes(GoodPlan({"parallel.pp_size=2"}, 2).parts), "8 4");
}

TEST(MakeParallelPlan, NamesWhatTpDoesNotDivide) {
  EXPECT_THAT(Fixable({"parallel.tp_size=8"}, 8),
              AllOf(HasSubstr("tp_size 8 does not divide model.num_heads 12"),
                    HasSubstr("these do: 1, 2, 3, 4, 6, 12"),
                    HasSubstr("nearest layout that works: --tp=4")));
  EXPECT_THAT(Fixable({"parallel.tp_size=3"}, 3),
              AllOf(HasSubstr("the 4096 rows of a micro-batch"),
                    Not(HasSubstr("num_heads"))));
  EXPECT_THAT(Fixable({"parallel.tp_size=5"}, 5),
              HasSubstr("embedding (model.vocab_size) 50304"));
  EXPECT_THAT(Fixable({"parallel.tp_size=2", "model.ffn_hidden_size=3071"}, 2),
              HasSubstr("model.ffn_hidden_size 3071"));
}

TEST(MakeParallelPlan, ChecksTheWorld) {
  EXPECT_THAT(Fixable({"parallel.tp_size=4"}, 6),
              AllOf(HasSubstr("6 ranks are no multiple of tp 4 x cp 1 x pp 1"),
                    HasSubstr("4 or 8 ranks")));
  EXPECT_THAT(Problem({"parallel.nodes=2", "parallel.gpus_per_node=4"}, 6),
              HasSubstr("2 x parallel.gpus_per_node 4 are 8 ranks, and there "
                        "are 6"));
  EXPECT_THAT(Problem({"parallel.nodes=3"}, 4),
              HasSubstr("4 ranks do not spread evenly over 3 nodes"));
}

TEST(MakeParallelPlan, NamesLengthsThatCpCuts) {
  EXPECT_THAT(
      Fixable({"parallel.cp_size=2", "model.seq_len=1022",
               "batch.micro_batch_size=4"},
              2),
      AllOf(HasSubstr("4 chunks, which do not divide model.seq_len 1022"),
            HasSubstr("model.seq_len=1020 or 1024")));
}

TEST(MakeParallelPlan, CpMethodsBelongToMixers) {
  EXPECT_THAT(Fixable({"parallel.cp_size=2", "parallel.cp_method=ring"}, 2),
              AllOf(HasSubstr("ring is not one of model.mixer cubit, which has "
                              "wavefront and ulysses"),
                    HasSubstr("--set parallel.cp_method=auto")));
  EXPECT_THAT(Problem({"parallel.cp_size=2", "parallel.cp_method=wavefront",
                       "model.mixer=softmax"},
                      2),
              HasSubstr("which has ring and ulysses"));
  EXPECT_THAT(Fixable({"parallel.cp_size=8", "parallel.cp_method=ulysses"}, 8),
              HasSubstr("the 12 heads of a tp rank (model.num_heads 12 / tp 1) "
                        "are no multiple of parallel.cp_size 8"));
  const std::vector<std::string> wavefront = {"parallel.cp_size=8",
                                              "parallel.cp_method=wavefront"};
  EXPECT_EQ(GoodPlan(wavefront, 8).cp_method, CpMethod::kSharded);
  EXPECT_EQ(GoodPlan(wavefront, 8).cp_reason, "asked for");
  EXPECT_EQ(GoodPlan(wavefront, 8, "cuda").cp_method, CpMethod::kSharded);
}

TEST(MakeParallelPlan, AutoSaysWhyItChose) {
  const ParallelPlan odd = GoodPlan({"parallel.cp_size=8"}, 8);
  EXPECT_EQ(odd.cp_method, CpMethod::kSharded);
  EXPECT_THAT(odd.cp_reason, HasSubstr("no multiple of 8"));
  // The gathered tensors hide behind quadratic work; all-to-alls hide nowhere.
  const ParallelPlan usual = GoodPlan({"parallel.cp_size=2"}, 2);
  EXPECT_EQ(usual.cp_method, CpMethod::kSharded);
  EXPECT_THAT(usual.cp_reason,
              AllOf(HasSubstr("ms for ulysses"), HasSubstr("for wavefront"),
                    HasSubstr("by the cost model")));
  const ParallelPlan gpu = GoodPlan({"parallel.cp_size=2"}, 2, "cuda");
  EXPECT_EQ(gpu.cp_method, CpMethod::kUlysses);
  EXPECT_THAT(gpu.cp_reason, HasSubstr("by the cost model"));
  // One very long sequence: the idle share of quadratic work outgrows them.
  EXPECT_EQ(GoodPlan({"parallel.cp_size=2", "model.seq_len=65536",
                      "batch.micro_batch_size=1"},
                     2)
                .cp_method,
            CpMethod::kUlysses);
  // Short sequences have too little work to hide them.
  const ParallelPlan shorter =
      GoodPlan({"parallel.cp_size=4", "model.seq_len=64"}, 4);
  EXPECT_EQ(shorter.cp_method, CpMethod::kUlysses);
}

TEST(MakeParallelPlan, BatchesCountDataParallelRanks) {
  EXPECT_THAT(Fixable({"batch.micro_batch_size=8"}, 8),
              AllOf(HasSubstr("global_batch_size 32 is not divisible by "
                              "batch.micro_batch_size 8 x dp 8 = 64"),
                    HasSubstr("batch.micro_batch_size=4")));
  EXPECT_THAT(Fixable({"batch.micro_batch_size=1"}, 64),
              HasSubstr("dp has 64 ranks, more than the 32 sequences"));
  // Only another global batch helps: last resort, still offered.
  EXPECT_THAT(
      Fixable({"batch.global_batch_size=7", "batch.micro_batch_size=1",
               "model.num_layers=1", "model.num_heads=1", "model.seq_len=9"},
              2),
      HasSubstr("--set batch.global_batch_size=8"));
}

TEST(MakeParallelPlan, PipelinesNeedLayersAndRounds) {
  EXPECT_THAT(Fixable({"parallel.pp_size=16"}, 16),
              HasSubstr("pp_size 16 x 1 chunks need a layer each, and "
                        "model.num_layers is 12"));
  EXPECT_THAT(
      Fixable({"parallel.pp_size=4", "parallel.pipeline_schedule=interleaved",
               "batch.global_batch_size=24"},
              4),
      HasSubstr("parallel.pipeline_schedule: "));
}

TEST(MakeParallelPlan, ListsEveryFault) {
  const std::string message =
      Problem({"parallel.tp_size=5", "evaluation.tasks=race",
               "evaluation.task_data=x", "parallel.nodes=2"},
              7);
  EXPECT_THAT(message, AllOf(HasSubstr("7 ranks are no multiple"),
                             HasSubstr("model.num_heads 12"),
                             HasSubstr("evenly over 2 nodes"),
                             HasSubstr("//launch:evaluate --follow")));
}

// 5040 has 60 divisors.
TEST(MakeParallelPlan, FindsTheNearestOfManyLayoutsAtOnce) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(Fixable({"parallel.tp_size=5", "parallel.cp_size=3",
                       "batch.global_batch_size=4096"},
                      5040),
              HasSubstr("nearest layout that works: --tp=4 --cp=4"));
  const std::chrono::duration<double> elapsed =
      std::chrono::steady_clock::now() - start;
  EXPECT_LT(elapsed.count(), 1.0);
}

TEST(MakeParallelPlan, WarnsOfWhatIsSlow) {
  EXPECT_THAT(GoodPlan({"parallel.tp_size=2"}, 4).warnings, IsEmpty());
  EXPECT_THAT(
      GoodPlan({"parallel.tp_size=4", "parallel.nodes=4"}, 8).warnings,
      ElementsAre(AllOf(HasSubstr("tp 4 reach beyond a node of 2 ranks"),
                        HasSubstr("--tp=2 stays inside"))));
  EXPECT_THAT(
      GoodPlan({"parallel.pp_size=4", "batch.global_batch_size=8"}, 4).warnings,
      ElementsAre(HasSubstr("2 micro-batches cannot fill 4")));
}

TEST(ModelCosts, AgreeWithTheModel) {
  for (const char* mixer : {"cubit", "softmax", "deltaformer"}) {
    for (const char* mlp : {"gelu", "swiglu"}) {
      for (const char* tied : {"false", "true"}) {
        const RunConfig config =
            With({absl::StrCat("model.mixer=", mixer),
                  absl::StrCat("model.mlp=", mlp), "model.num_layers=3",
                  absl::StrCat("model.tied_embeddings=", tied)});
        const ModelConfig model = *MakeModelConfig(config, 50257);
        const ModelCosts costs = *MakeModelCosts(model);
        const auto whole = *LanguageModel::Create(model);
        EXPECT_EQ(costs.NumParameters(3, 1, true, true),
                  whole->parameters().num_elements());
        EXPECT_DOUBLE_EQ(
            3 * (3 * costs.LayerForwardFlops() + costs.HeadForwardFlops()),
            whole->TrainFlops(1, model.seq_len));
      }
    }
  }
}

}  // namespace
}  // namespace cubit
