// SPDX-License-Identifier: Apache-2.0
//
// Every layer over tensor and context parallel ranks gives the results and the
// gradients of one rank.

#include <algorithm>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "models/block.h"
#include "models/language_head.h"
#include "models/mixer_layer.h"
#include "models/mixers/registry.h"
#include "models/mlp.h"
#include "models/norm.h"
#include "models/token_embedding.h"
#include "ops/cross_entropy.h"
#include "ops/matmul.h"
#include "runtime/philox.h"
#include "tests/models/parallel_ranks.h"

namespace cubit {
namespace {

using ::cubit::testing::ExpectClose;
using ::cubit::testing::ParallelRank;
using ::cubit::testing::RankBatch;
using ::cubit::testing::RankBody;
using ::cubit::testing::RankLayout;
using ::cubit::testing::RunRanks;
using ::cubit::testing::WholeTensors;

// The worst seen is 9.3e-7, of the gradient of a bias.
constexpr double kTolerance = 5e-6;

ModelConfig Config() {
  ModelConfig config;
  config.num_layers = 2;
  config.hidden_size = 64;
  config.num_heads = 4;
  config.ffn_hidden_size = 96;
  config.vocab_size = 256;
  // Over four ranks: one full, one with a few, two with padding alone.
  config.valid_vocab = 70;
  config.cubit.lambda_init = 0.1;
  return config;
}

std::string NameOf(const RankLayout& layout) {
  std::string name = absl::StrCat("tp", layout.tp, "_cp", layout.cp);
  if (layout.cp == 1) return name;
  name += layout.method == CpMethod::kUlysses ? "_ulysses" : "_sharded";
  return name;
}

// Each layout against one rank, and against itself bit for bit.
void ExpectSameAsOneRank(const ModelConfig& config,
                         const std::vector<RankLayout>& layouts,
                         const RankBatch& batch, const RankBody& body) {
  const WholeTensors want = RunRanks(config, RankLayout(), batch, body);
  for (const RankLayout& layout : layouts) {
    SCOPED_TRACE(NameOf(layout));
    const WholeTensors got = RunRanks(config, layout, batch, body);
    ExpectClose(got, want, kTolerance);
    EXPECT_EQ(RunRanks(config, layout, batch, body), got);
  }
}

std::vector<int32_t> RandomTokens(const std::string& name,
                                  const ModelConfig& config,
                                  const RankBatch& batch) {
  const Philox random(3, name);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < batch.batch * batch.seq_len; ++i) {
    tokens.push_back(
        static_cast<int32_t>(random.Bits(static_cast<uint64_t>(i)) %
                             static_cast<uint64_t>(config.valid_vocab)));
  }
  return tokens;
}

class TensorParallel : public ::testing::TestWithParam<RankLayout> {
 protected:
  const RankLayout& Layout() const { return GetParam(); }
};

TEST_P(TensorParallel, Norm) {
  for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
    ModelConfig config = Config();
    config.norm = kind;
    ExpectSameAsOneRank(config, {Layout()}, {}, [&](ParallelRank& rank) {
      const Norm norm(&rank.store, "norm", config, rank.shard);
      rank.InitializeParameters();
      NormSaved saved;
      rank.Allocate([&](Arena& arena) {
        saved = norm.AllocateSaved(rank.num_local_rows(), arena);
      });
      const Tensor x = rank.RandomRows("x", config.hidden_size);
      const Tensor d_x = rank.RandomRows("d_x", config.hidden_size);
      norm.Forward(rank.context, x, &saved);
      norm.Backward(rank.context, rank.RandomRows("d_y", config.hidden_size), x,
                    saved, d_x, /*d_x_sums=*/Tensor());
      rank.AddRows("y", saved.y);
      rank.AddRows("d_x", d_x);
      rank.AddGradients();
    });
  }
}

TEST_P(TensorParallel, TokenEmbedding) {
  const ModelConfig config = Config();
  const RankBatch batch;
  const std::vector<int32_t> tokens = RandomTokens("ids", config, batch);
  ExpectSameAsOneRank(config, {Layout()}, batch, [&](ParallelRank& rank) {
    const TokenEmbedding embedding(&rank.store, "embedding", config,
                                   rank.shard);
    rank.InitializeParameters();
    const Tensor ids = rank.TokenRows(tokens);
    const Tensor y = rank.PoisonedRows(config.hidden_size);
    embedding.Forward(rank.context, ids, y);
    embedding.Backward(rank.context, ids,
                       rank.RandomRows("d", config.hidden_size));
    rank.AddRows("y", y);
    rank.AddGradients();
  });
}

// With the embedding's weight if `tied`; over several chunks of rows.
void ExpectHeadSameAsOneRank(const ModelConfig& config, bool tied,
                             const RankLayout& layout) {
  const RankBatch batch = {2, 80, false};
  std::vector<int32_t> whole_targets = RandomTokens("targets", config, batch);
  for (size_t i = 1; i < whole_targets.size(); i += 5) {
    whole_targets[i] = kIgnoredTarget;
  }
  ExpectSameAsOneRank(config, {layout}, batch, [&](ParallelRank& rank) {
    const TokenEmbedding embedding(&rank.store, "embedding", config,
                                   rank.shard);
    const LanguageHead head(&rank.store, "head", config, rank.shard,
                            tied ? &embedding.weight() : nullptr);
    rank.InitializeParameters();
    LanguageHeadScratch scratch;
    rank.Allocate([&](Arena& arena) {
      scratch = head.AllocateScratch(rank.num_rows(), arena);
    });
    EXPECT_LT(scratch.logits.dim(0), rank.num_rows());
    const Tensor x = rank.RandomRows("x", config.hidden_size);
    const Tensor d_x = rank.PoisonedRows(config.hidden_size);
    const Tensor targets = rank.TokenRows(whole_targets);
    testing::HostTensor<float> losses = testing::Poisoned({rank.num_rows()});
    head.LossAndGradient(rank.context, x, targets, 0.3f, scratch, losses.view(),
                         d_x);
    testing::HostTensor<float> alone = testing::Poisoned({rank.num_rows()});
    head.Loss(rank.context, x, targets, scratch, alone.view());
    EXPECT_EQ(alone.values(), losses.values());
    const std::string of_rank =
        rank.shard.tp_rank == 0 ? "" : absl::StrCat("@", rank.shard.tp_rank);
    rank.AddTokens("losses" + of_rank, losses.view());
    rank.AddRows("d_x", d_x);
    rank.AddGradients();
  });
}

TEST_P(TensorParallel, LanguageHead) {
  ModelConfig config = Config();
  config.logits_chunk_bytes = 1;
  ExpectHeadSameAsOneRank(config, /*tied=*/false, Layout());
  config.z_loss = 1e-2;
  ExpectHeadSameAsOneRank(config, /*tied=*/true, Layout());
  config.valid_vocab = config.vocab_size;
  ExpectHeadSameAsOneRank(config, /*tied=*/false, Layout());
}

TEST_P(TensorParallel, LanguageHeadHasTheColumnsThatItsIdsNeed) {
  const ModelConfig config = Config();
  RunRanks(config, Layout(), {}, [&](ParallelRank& rank) {
    const LanguageHead head(&rank.store, "head", config, rank.shard, nullptr);
    const int64_t extent = config.vocab_size / rank.shard.tp_size;
    const int64_t existing = std::min(
        extent,
        std::max<int64_t>(0, config.valid_vocab - rank.shard.tp_rank * extent));
    EXPECT_GE(head.num_logits(), std::max<int64_t>(existing, 1));
    EXPECT_LE(head.num_logits(), std::min(extent, existing + 64));
  });
}

// 10,240 rows where 4,096 fit: three chunks of a third, up to a multiple of 64,
// instead of two that are full and a short one.
TEST_P(TensorParallel, LanguageHeadTakesRowsInEvenChunks) {
  RunRanks(Config(), Layout(), {}, [&](ParallelRank& rank) {
    if (rank.shard.tp_rank != 0) return;  // the first has the most logits
    ModelConfig config = Config();
    const LanguageHead any(&rank.store, "any", config, rank.shard, nullptr);
    config.logits_chunk_bytes =
        4096 * any.num_logits() * SizeOf(config.activation_dtype);
    const LanguageHead head(&rank.store, "head", config, rank.shard, nullptr);
    Arena measure = Arena::Measuring();
    EXPECT_EQ(head.AllocateScratch(10240, measure).logits.dim(0), 3456);
    EXPECT_EQ(head.AllocateScratch(4096, measure).logits.dim(0), 4096);
    EXPECT_EQ(head.AllocateScratch(100, measure).logits.dim(0), 100);
  });
}

TEST_P(TensorParallel, Mlp) {
  for (const MlpKind kind : {MlpKind::kGelu, MlpKind::kSwiGlu}) {
    ModelConfig config = Config();
    config.mlp = kind;
    config.bias = kind == MlpKind::kGelu;
    ExpectSameAsOneRank(config, {Layout()}, {}, [&](ParallelRank& rank) {
      const Mlp mlp(&rank.store, "mlp", config, rank.shard);
      rank.InitializeParameters();
      MlpSaved saved;
      MlpScratch scratch;
      rank.Allocate([&](Arena& arena) {
        saved = mlp.AllocateSaved(rank.num_rows(), arena);
        scratch = mlp.AllocateScratch(rank.num_rows(), arena);
      });
      const Tensor x = rank.RandomRows("x", config.hidden_size);
      const Tensor y = rank.RandomRows("residual", config.hidden_size);
      const Tensor d_x = rank.PoisonedRows(config.hidden_size);
      mlp.Forward(rank.context, x, /*residual=*/y, &saved, y);
      const Tensor d_y = rank.RandomRows("d_y", config.hidden_size);
      LinearBackwardBias(d_y, mlp.OutBiasGradient(), *rank.context.stream);
      mlp.Backward(rank.context, d_y, x, saved, scratch, d_x);
      rank.AddRows("y", y);
      rank.AddRows("d_x", d_x);
      rank.AddGradients();
    });
  }
}

TEST_P(TensorParallel, AFailedGroupIsNotedAndNobodyWaits) {
  const ModelConfig config = Config();
  RunRanks(config, Layout(), {}, [&](ParallelRank& rank) {
    const Mlp mlp(&rank.store, "mlp", config, rank.shard);
    rank.InitializeParameters();
    MlpSaved saved;
    rank.Allocate([&](Arena& arena) {
      saved = mlp.AllocateSaved(rank.num_rows(), arena);
    });
    if (rank.shard.tp_rank == 0) {
      rank.parallel.tp->Abort(absl::DataLossError("a test"));
    } else {
      const Tensor x = rank.RandomRows("x", config.hidden_size);
      const Tensor y = rank.PoisonedRows(config.hidden_size);
      mlp.Forward(rank.context, x, ConstTensor(), &saved, y);
      EXPECT_EQ(rank.parallel.status.code(), absl::StatusCode::kDataLoss)
          << rank.parallel.status;
      rank.parallel.status = absl::OkStatus();  // RunRanks looks at it
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, TensorParallel,
                         ::testing::Values(RankLayout{2, 1}, RankLayout{4, 1},
                                           RankLayout{2, 2}),
                         [](const auto& test) { return NameOf(test.param); });

struct MixerCase {
  std::string name;
  ModelConfig config;

  friend void PrintTo(const MixerCase& value, std::ostream* out) {
    *out << value.name;
  }
};

std::vector<MixerCase> MixerCases() {
  std::vector<MixerCase> cases;
  for (const std::string& mixer : MixerNames()) {
    cases.push_back({mixer, Config()});
    cases.back().config.mixer = mixer;
  }
  cases.push_back({"cubit_share", cases[0].config});
  cases.back().config.cubit.share = true;
  cases.push_back({"softmax_qk_norm", Config()});
  cases.back().config.mixer = "softmax";
  cases.back().config.softmax.qk_norm = true;
  return cases;
}

constexpr CpMethod kUlysses = CpMethod::kUlysses;
constexpr CpMethod kSharded = CpMethod::kSharded;

class ParallelMixer : public ::testing::TestWithParam<MixerCase> {
 protected:
  ModelConfig config = GetParam().config;
  std::unique_ptr<TokenMixer> mixer = MakeMixer(config).value();
};

TEST_P(ParallelMixer, MixerLayer) {
  for (const bool documents : {false, true}) {
    const RankBatch batch = {2, 40, documents};
    const std::vector<RankLayout> layouts =
        documents ? std::vector<RankLayout>{{1, 2, kUlysses},
                                            {2, 2, kUlysses},
                                            {2, 2, kSharded}}
                  : std::vector<RankLayout>{
                        {2, 1}, {4, 1}, {1, 4, kUlysses}, {1, 4, kSharded}};
    ExpectSameAsOneRank(config, layouts, batch, [&](ParallelRank& rank) {
      const MixerLayer layer(&rank.store, "mixer", config, rank.shard,
                             mixer.get());
      rank.InitializeParameters();
      MixerLayerSaved saved;
      MixerLayerScratch scratch;
      rank.Allocate([&](Arena& arena) {
        saved = layer.AllocateSaved(batch.batch, batch.seq_len, arena);
        scratch = layer.AllocateScratch(batch.batch, batch.seq_len, arena);
      });
      rank.parallel.mixer_scratch = &scratch;
      const Tensor x = rank.RandomRows("x", config.hidden_size);
      const Tensor y = rank.RandomRows("residual", config.hidden_size);
      const Tensor d_x = rank.PoisonedRows(config.hidden_size);
      layer.Forward(rank.context, x, /*residual=*/y, &saved, y);
      const Tensor d_y = rank.RandomRows("d_y", config.hidden_size);
      LinearBackwardBias(d_y, layer.OutBiasGradient(), *rank.context.stream);
      layer.Backward(rank.context, d_y, x, saved, scratch, d_x,
                     /*health=*/Tensor());
      rank.AddRows("y", y);
      rank.AddRows("d_x", d_x);
      rank.AddGradients();
    });
  }
}

// [3] of every rank.
std::vector<std::vector<float>> HealthOfRanks(const MixerCase& test,
                                              const TokenMixer& mixer,
                                              const RankLayout& layout) {
  const RankBatch batch;
  std::vector<std::vector<float>> of_ranks(
      static_cast<size_t>(layout.tp * layout.cp));
  RunRanks(test.config, layout, batch, [&](ParallelRank& rank) {
    const MixerLayer layer(&rank.store, "mixer", test.config, rank.shard,
                           &mixer);
    rank.InitializeParameters();
    MixerLayerSaved saved;
    MixerLayerScratch scratch;
    rank.Allocate([&](Arena& arena) {
      saved = layer.AllocateSaved(batch.batch, batch.seq_len, arena);
      scratch = layer.AllocateScratch(batch.batch, batch.seq_len, arena);
    });
    rank.parallel.mixer_scratch = &scratch;
    const int64_t width = test.config.hidden_size;
    const Tensor x = rank.RandomRows("x", width);
    layer.Forward(rank.context, x, ConstTensor(), &saved,
                  rank.PoisonedRows(width));
    testing::HostTensor<float> result = testing::Poisoned({3});
    layer.Backward(rank.context, rank.RandomRows("d_y", width), x, saved,
                   scratch, rank.PoisonedRows(width), result.view());
    const int place = rank.shard.tp_rank + layout.tp * rank.shard.cp_rank;
    of_ranks[static_cast<size_t>(place)] = result.values();
  });
  return of_ranks;
}

// A gain is a ratio of two maxima: the largest of the ranks bounds it.
TEST_P(ParallelMixer, TheWorstHealthOfTheRanksIsThatOfOneRankOrWorse) {
  if (!mixer->has_health()) GTEST_SKIP() << "no system is solved";
  const std::vector<float> want =
      HealthOfRanks(GetParam(), *mixer, RankLayout())[0];
  for (const RankLayout& layout : {RankLayout{4, 1}, RankLayout{2, 2, kUlysses},
                                   RankLayout{2, 2, kSharded}}) {
    SCOPED_TRACE(NameOf(layout));
    std::vector<float> worst = {1e30f, 0.0f, 0.0f};
    for (const auto& health : HealthOfRanks(GetParam(), *mixer, layout)) {
      worst[0] = std::min(worst[0], health[0]);
      worst[1] = std::max(worst[1], health[1]);
      worst[2] = std::max(worst[2], health[2]);
    }
    EXPECT_NEAR(worst[0], want[0], 1e-5f * want[0]);
    EXPECT_GE(worst[1], want[1] * (1 - 1e-5f));
    EXPECT_EQ(worst[2], want[2]);
  }
}

// Two, the first of which has the second sum the columns of its gradient.
// Recomputed, so that the backward finds what the second forward left.
TEST_P(ParallelMixer, Blocks) {
  for (const Recompute recompute : {Recompute::kSelective, Recompute::kFull}) {
    const RankBatch batch = {1, 40, /*documents=*/false};
    const std::vector<RankLayout> layouts =
        recompute == Recompute::kFull
            ? std::vector<RankLayout>{{2, 2, kUlysses}, {2, 2, kSharded}}
            : std::vector<RankLayout>{{4, 1}};
    ExpectSameAsOneRank(config, layouts, batch, [&](ParallelRank& rank) {
      const Block first(&rank.store, "first", config, rank.shard, mixer.get());
      const Block second(&rank.store, "second", config, rank.shard,
                         mixer.get());
      rank.InitializeParameters();
      BlockSaved of_first;
      BlockSaved of_second;
      BlockScratch scratch;
      rank.Allocate([&](Arena& arena) {
        of_first = first.AllocateSaved(batch.batch, batch.seq_len, arena);
        of_second = second.AllocateSaved(batch.batch, batch.seq_len, arena);
        scratch = first.AllocateScratch(batch.batch, batch.seq_len, arena);
      });
      rank.parallel.mixer_scratch = &scratch.mixer;
      const Tensor x = rank.RandomRows("x", config.hidden_size);
      const Tensor d = rank.RandomRows("d", config.hidden_size);
      first.Forward(rank.context, x, &of_first);
      second.Forward(rank.context, of_first.out, &of_second);
      rank.AddRows("y", of_second.out);
      LinearBackwardBias(d, second.OutBiasGradient(), *rank.context.stream);
      second.RecomputeForward(rank.context, of_first.out, recompute,
                              &of_second);
      second.Backward(rank.context, of_first.out, of_second, scratch, d,
                      first.OutBiasGradient(), /*health=*/Tensor());
      first.RecomputeForward(rank.context, x, recompute, &of_first);
      first.Backward(rank.context, x, of_first, scratch, d,
                     /*d_x_sums=*/Tensor(), /*health=*/Tensor());
      rank.AddRows("d", d);
      rank.AddGradients();
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Mixers, ParallelMixer,
                         ::testing::ValuesIn(MixerCases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace cubit
