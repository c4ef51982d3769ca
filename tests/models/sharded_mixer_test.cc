// SPDX-License-Identifier: Apache-2.0
//
// Mixers on sequence shards against the same mixers on whole sequences: ranks
// are threads.

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "models/mixers/registry.h"
#include "models/mixers/sequence_groups.h"
#include "ops/rotary.h"
#include "parallel/sequence_layout.h"
#include "parallel/wavefront_runner.h"
#include "parallel/wavefront_trace.h"
#include "runtime/communication_lane.h"
#include "runtime/communicator_threads.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using testing::HostTensor;
using testing::IsClose;
using testing::Poisoned;
using testing::RandomNormal;
using testing::ToDouble;

constexpr int64_t kHeads = 2;
constexpr int64_t kHeadDim = 16;
constexpr int64_t kWidth = kHeads * kHeadDim;
constexpr double kTolerance = 1e-5;

struct Variant {
  std::string name;
  ModelConfig config;
  // Added to log_lambda of every head, and the sign of scale in the last.
  float log_lambda = 0;
  float last_scale = 1;
};

Variant MakeVariant(const std::string& name, const std::string& mixer) {
  Variant variant;
  variant.name = name;
  variant.config.mixer = mixer;
  variant.config.num_heads = kHeads;
  variant.config.hidden_size = kWidth;
  return variant;
}

std::vector<Variant> Variants() {
  std::vector<Variant> list;
  list.push_back(MakeVariant("cubit", "cubit"));
  list.push_back(MakeVariant("cubit_share", "cubit"));
  list.back().config.cubit.share = true;
  list.push_back(MakeVariant("cubit_nolrr", "cubit"));
  list.back().config.cubit.lrr = false;
  list.push_back(MakeVariant("cubit_large_lambda", "cubit"));
  list.back().log_lambda = 2;
  list.push_back(MakeVariant("cubit_negative_scale", "cubit"));
  list.back().last_scale = -1;
  // Such a kernel's diagonal is its smallest entry: without a lambda of its
  // size the system has no five correct digits in fp32.
  list.back().log_lambda = 1;
  list.push_back(MakeVariant("deltaformer", "deltaformer"));
  list.push_back(MakeVariant("deltaformer_w_k", "deltaformer"));
  list.back().config.deltaformer.w = DeltaWeights::kKey;
  list.push_back(MakeVariant("deltaformer_w_q_linear", "deltaformer"));
  list.back().config.deltaformer.w = DeltaWeights::kQuery;
  list.back().config.deltaformer.beta = DeltaBeta::kLinear;
  list.push_back(MakeVariant("softmax", "softmax"));
  list.push_back(MakeVariant("softmax_qk_norm", "softmax"));
  list.back().config.softmax.qk_norm = true;
  return list;
}

// What a call gives, over the whole sequence.
struct Results {
  HostTensor<float> out;
  HostTensor<float> d_columns;
  std::vector<HostTensor<float>> d_scalars;
  std::vector<HostTensor<float>> health;  // of every rank
};

// A mixer and the data of one call.
class Problem {
 public:
  Problem(const Variant& variant, int64_t batch, int64_t seq_len)
      : batch_(batch), seq_len_(seq_len), table_({seq_len, kHeadDim}) {
    auto mixer = MakeMixer(variant.config);
    CUBIT_CHECK_OK(mixer);
    mixer_ = *std::move(mixer);
    Stream stream;
    RotaryTable(10000, table_.view(), stream);
    const auto projections = mixer_->projections();
    num_columns_ = ProjectionColumn(projections, projections.size(), kHeads);
    uint64_t seed = 100;
    for (const MixerScalar& scalar : mixer_->scalars()) {
      // A lambda that the gradient can see, and values off their initial ones.
      const auto initial =
          std::max(static_cast<float>(scalar.initial), -1.0f) +
          (scalar.name == "log_lambda" ? variant.log_lambda : 0);
      scalars_.push_back(RandomNormal(seed++, "scalar", {kHeads}, 0.1));
      for (int64_t h = 0; h < kHeads; ++h) scalars_.back()[h] += initial;
      if (scalar.name == "scale") {
        scalars_.back()[kHeads - 1] *= variant.last_scale;
      }
    }
    columns_ = RandomNormal(1, "columns", {batch, seq_len, num_columns_});
    d_out_ = RandomNormal(2, "d_out", {batch, seq_len, kWidth});
  }

  const TokenMixer& mixer() const { return *mixer_; }

  // Documents of lengths that no chunk has, elsewhere in every sequence.
  void AddDocuments() {
    segments_ = HostTensor<int32_t>({batch_, seq_len_});
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t t = 0; t < seq_len_; ++t) {
        segments_[b * seq_len_ + t] =
            static_cast<int32_t>((t + 11 * b) / (37 + 26 * (b % 2)));
      }
    }
  }

  bool has_documents() const { return segments_.shape().rank() > 0; }
  HostTensor<int32_t> SegmentsByChunks(const SequenceLayout& layout) const {
    HostTensor<int32_t> segments(
        {layout.num_chunks(), batch_, layout.chunk_len()});
    if (has_documents()) {
      layout.OrderByChunks(batch_, &segments_[0], &segments[0]);
    }
    return segments;
  }

  // Of whole sequences, or with ids chunk by chunk.
  MixerContext Context(Stream* stream,
                       const HostTensor<int32_t>& segments) const {
    MixerContext context;
    for (const auto& scalar : scalars_) {
      context.scalars.push_back(scalar.view());
    }
    context.rotary_table = table_.view();
    if (has_documents()) context.mask.segment_ids = segments.view();
    context.stream = stream;
    return context;
  }

  Results Whole() const;
  // Sums of d_scalars begin as `there` on every rank.
  Results Sharded(int cp_size, WavefrontTrace* trace = nullptr,
                  float there = 0) const;
  // One rank's calls; results of its rows.
  Results Shard(const SequenceLayout& layout, int rank, CommunicationLane* lane,
                WavefrontTrace* trace, float there, absl::Status* status) const;

 private:
  // Between a tensor [B, T, width] and a rank's rows [B, Tl, width].
  HostTensor<float> RowsOf(const HostTensor<float>& whole,
                           const SequenceLayout& layout, int rank) const;
  void PutRows(const HostTensor<float>& local, const SequenceLayout& layout,
               int rank, HostTensor<float>* whole) const;

  int64_t batch_;
  int64_t seq_len_;
  int64_t num_columns_ = 0;
  std::unique_ptr<TokenMixer> mixer_;
  HostTensor<float> table_;
  HostTensor<int32_t> segments_;
  std::vector<HostTensor<float>> scalars_;
  HostTensor<float> columns_;
  HostTensor<float> d_out_;
};

// Lays out twice, as a run does.
template <typename Layout>
Arena Allocate(const Layout& layout) {
  Arena measure = Arena::Measuring();
  layout(measure);
  auto arena =
      Arena::Create(measure.used_bytes(), MemoryCategory::kActivations);
  CUBIT_CHECK_OK(arena);
  layout(*arena);
  return *std::move(arena);
}

std::vector<Tensor> ViewsOf(std::vector<HostTensor<float>>& tensors) {
  std::vector<Tensor> views;
  for (auto& tensor : tensors) views.push_back(tensor.view());
  return views;
}

Results Problem::Whole() const {
  Stream stream;
  const MixerShape shape = {batch_, seq_len_, kHeads, kHeadDim};
  std::unique_ptr<MixerSaved> saved;
  std::unique_ptr<MixerScratch> scratch;
  const Arena arena = Allocate([&](Arena& a) {
    saved = mixer_->AllocateSaved(shape, a);
    scratch = mixer_->AllocateScratch(shape, a);
  });
  Results results;
  results.out = Poisoned({batch_, seq_len_, kWidth});
  results.d_columns = Poisoned(columns_.shape());
  results.d_scalars.resize(scalars_.size(), HostTensor<float>({kHeads}));
  HostTensor<float> kept = columns_;
  const MixerContext context = Context(&stream, segments_);
  mixer_->Forward(context, kept.view(), saved.get(), results.out.view());
  if (mixer_->has_health()) results.health.push_back(Poisoned({3}));
  mixer_->Backward(context, kept.view(), *saved, results.out.view(),
                   d_out_.view(), scratch.get(), results.d_columns.view(),
                   ViewsOf(results.d_scalars),
                   mixer_->has_health() ? results.health[0].view() : Tensor(),
                   /*d_column_sums=*/Tensor());
  return results;
}

HostTensor<float> Problem::RowsOf(const HostTensor<float>& whole,
                                  const SequenceLayout& layout,
                                  int rank) const {
  const int64_t width = whole.shape()[2];
  HostTensor<float> local({batch_, layout.local_seq_len(), width});
  for (int64_t b = 0; b < batch_; ++b) {
    for (const int chunk : layout.ChunksOf(rank)) {
      std::copy_n(
          &whole[(b * seq_len_ + layout.GlobalBegin(chunk)) * width],
          layout.chunk_len() * width,
          &local[(b * layout.local_seq_len() + layout.LocalBegin(chunk)) *
                 width]);
    }
  }
  return local;
}

void Problem::PutRows(const HostTensor<float>& local,
                      const SequenceLayout& layout, int rank,
                      HostTensor<float>* whole) const {
  const int64_t width = whole->shape()[2];
  for (int64_t b = 0; b < batch_; ++b) {
    for (const int chunk : layout.ChunksOf(rank)) {
      std::copy_n(
          &local[(b * layout.local_seq_len() + layout.LocalBegin(chunk)) *
                 width],
          layout.chunk_len() * width,
          &(*whole)[(b * seq_len_ + layout.GlobalBegin(chunk)) * width]);
    }
  }
}

Results Problem::Shard(const SequenceLayout& layout, int rank,
                       CommunicationLane* lane, WavefrontTrace* trace,
                       float there, absl::Status* status) const {
  const SequenceShardedMixer& mixer = *mixer_->sharded();
  Stream stream;
  ParallelContext parallel;
  parallel.cp_lane = lane;
  WavefrontObserver observer;
  observer.trace = trace;
  parallel.observer = &observer;
  const SequenceShard sequence = {layout, rank, &parallel};
  const MixerShape shape = {batch_, layout.local_seq_len(), kHeads, kHeadDim};
  std::unique_ptr<MixerSaved> saved;
  std::unique_ptr<MixerScratch> scratch;
  const Arena arena = Allocate([&](Arena& a) {
    saved = mixer.AllocateShardedSaved(shape, layout, a);
    scratch = mixer.AllocateShardedScratch(shape, layout, a);
  });
  Results results;
  HostTensor<float> kept = RowsOf(columns_, layout, rank);
  const HostTensor<float> d_out = RowsOf(d_out_, layout, rank);
  results.out = Poisoned(d_out.shape());
  results.d_columns = Poisoned(kept.shape());
  results.d_scalars.resize(scalars_.size(), HostTensor<float>({kHeads}, there));
  const HostTensor<int32_t> segments = SegmentsByChunks(layout);
  const MixerContext context = Context(&stream, segments);
  mixer.ForwardSharded(context, sequence, kept.view(), saved.get(),
                       scratch.get(), results.out.view());
  mixer.BackwardSharded(context, sequence, kept.view(), *saved,
                        results.out.view(), d_out.view(), scratch.get(),
                        results.d_columns.view(), ViewsOf(results.d_scalars));
  if (mixer_->has_health()) {
    results.health.push_back(Poisoned({3}));
    mixer.HealthSharded(context, kept.view(), *saved, results.health[0].view());
  }
  *status = parallel.status;
  return results;
}

Results Problem::Sharded(int cp_size, WavefrontTrace* trace,
                         float there) const {
  const SequenceLayout layout(seq_len_, cp_size);
  auto communicators =
      MakeThreadCommunicators("cp", cp_size, absl::Seconds(30));
  std::vector<Results> ranks(static_cast<size_t>(cp_size));
  std::vector<absl::Status> status(ranks.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    threads.emplace_back([&, rank] {
      CommunicationLane lane(std::move(communicators[rank]));
      ranks[rank] = Shard(layout, static_cast<int>(rank), &lane, trace, there,
                          &status[rank]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  Results all;
  all.out = Poisoned({batch_, seq_len_, kWidth});
  all.d_columns = Poisoned(columns_.shape());
  all.d_scalars.resize(scalars_.size(), HostTensor<float>({kHeads}));
  for (int rank = 0; rank < cp_size; ++rank) {
    const auto index = static_cast<size_t>(rank);
    CUBIT_CHECK_OK(status[index]);
    PutRows(ranks[index].out, layout, rank, &all.out);
    PutRows(ranks[index].d_columns, layout, rank, &all.d_columns);
    for (size_t i = 0; i < scalars_.size(); ++i) {
      for (int64_t h = 0; h < kHeads; ++h) {
        all.d_scalars[i][h] += ranks[index].d_scalars[i][h];
      }
    }
    for (auto& health : ranks[index].health) all.health.push_back(health);
  }
  return all;
}

void ExpectClose(const Results& got, const Results& want) {
  EXPECT_TRUE(IsClose(ToDouble(got.out.values()), ToDouble(want.out.values()),
                      kTolerance))
      << "out";
  EXPECT_TRUE(IsClose(ToDouble(got.d_columns.values()),
                      ToDouble(want.d_columns.values()), kTolerance))
      << "d_columns";
  ASSERT_EQ(got.d_scalars.size(), want.d_scalars.size());
  for (size_t i = 0; i < got.d_scalars.size(); ++i) {
    EXPECT_TRUE(IsClose(ToDouble(got.d_scalars[i].values()),
                        ToDouble(want.d_scalars[i].values()), kTolerance))
        << "scalar " << i;
  }
}

class ShardedMixer : public ::testing::TestWithParam<Variant> {};

// Chunks longer than a tile of the ops, and shorter; groups of one sequence, of
// two with all heads, and of three with one head.
struct Extent {
  int cp_size;
  int64_t batch;
  int64_t seq_len;
};
constexpr Extent kExtents[] = {{2, 1, 4 * 68},
                               {4, 2, 8 * 9},
                               {3, 3, 6 * 7},
                               {2, 8, 4 * 14},
                               {3, 6, 6 * 9}};

TEST_P(ShardedMixer, EqualsTheWholeSequence) {
  for (const Extent& extent : kExtents) {
    SCOPED_TRACE(extent.seq_len);
    const Problem problem(GetParam(), extent.batch, extent.seq_len);
    ExpectClose(problem.Sharded(extent.cp_size), problem.Whole());
  }
}

TEST_P(ShardedMixer, EqualsTheWholeSequenceWithDocumentsAcrossChunks) {
  for (const Extent& extent : kExtents) {
    SCOPED_TRACE(extent.seq_len);
    Problem problem(GetParam(), extent.batch, extent.seq_len);
    problem.AddDocuments();
    ExpectClose(problem.Sharded(extent.cp_size), problem.Whole());
  }
}

TEST_P(ShardedMixer, OneRankIsTheWholeSequenceToo) {
  const Problem problem(GetParam(), 2, 40);
  ExpectClose(problem.Sharded(1), problem.Whole());
}

TEST_P(ShardedMixer, TwoRunsAreEqualBitForBit) {
  Problem problem(GetParam(), 2, 8 * 12);
  problem.AddDocuments();
  const Results first = problem.Sharded(4);
  const Results second = problem.Sharded(4);
  EXPECT_EQ(first.out.values(), second.out.values());
  EXPECT_EQ(first.d_columns.values(), second.d_columns.values());
  for (size_t i = 0; i < first.d_scalars.size(); ++i) {
    EXPECT_EQ(first.d_scalars[i].values(), second.d_scalars[i].values());
  }
}

// The smallest diagonal and the largest lambda are those of all ranks; a gain
// is over the rank's own values, so some rank's is at least the whole one.
TEST_P(ShardedMixer, HealthIsOfTheRowsOfTheRanks) {
  const Problem problem(GetParam(), 2, 8 * 12);
  if (!problem.mixer().has_health()) return;
  const Results whole = problem.Whole();
  const Results ranks = problem.Sharded(4);
  ASSERT_EQ(ranks.health.size(), 4u);
  float smallest = 1e30f;
  float gain = 0;
  for (const auto& health : ranks.health) {
    smallest = std::min(smallest, health[0]);
    gain = std::max(gain, health[1]);
    EXPECT_EQ(health[2], whole.health[0][2]);
  }
  EXPECT_NEAR(smallest, whole.health[0][0], 1e-5 * whole.health[0][0]);
  EXPECT_GE(gain, whole.health[0][1] * (1 - 1e-5f));
}

TEST_P(ShardedMixer, AFailedRankIsAnErrorOnTheOthersAndNoHang) {
  const Problem problem(GetParam(), 2, 4 * 8);
  auto communicators = MakeThreadCommunicators("cp", 2, absl::Seconds(30));
  std::thread dying([&] {
    CommunicationLane lane(std::move(communicators[1]));
    lane.Abort(absl::UnavailableError("rank 1 gives up"));
  });
  absl::Status status;
  {
    CommunicationLane lane(std::move(communicators[0]));
    problem.Shard(SequenceLayout(4 * 8, 2), 0, &lane, nullptr, 0, &status);
  }
  dying.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
}

TEST_P(ShardedMixer, GradientsOfScalarsAreAddedToWhatIsThere) {
  const Problem problem(GetParam(), 1, 16);
  constexpr float kThere = 0.5f;
  const Results zero = problem.Sharded(2);
  const Results there = problem.Sharded(2, nullptr, kThere);
  for (size_t i = 0; i < zero.d_scalars.size(); ++i) {
    for (int64_t h = 0; h < kHeads; ++h) {
      const float want = zero.d_scalars[i][h] + 2 * kThere;
      EXPECT_NEAR(there.d_scalars[i][h], want, 1e-5f * (1 + std::abs(want)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Mixers, ShardedMixer, ::testing::ValuesIn(Variants()),
                         [](const auto& test) { return test.param.name; });

TEST(SequenceGroups, AreEnoughToOverlapAndNoMore) {
  const SequenceLayout layout(16, 2);
  // Batch, heads; sequences and heads of a group, and groups.
  const int64_t cases[][5] = {
      {1, 16, 1, 4, 4}, {1, 12, 1, 3, 4}, {2, 6, 1, 3, 4}, {8, 6, 2, 6, 4},
      {1, 3, 1, 1, 3},  {1, 10, 1, 2, 5}, {2, 1, 1, 1, 2}, {32, 12, 8, 12, 4},
      {6, 12, 3, 6, 4}, {7, 12, 7, 3, 4}, {10, 1, 2, 1, 5}};
  for (const auto& [batch, heads, sequences, want, count] : cases) {
    const SequenceGroups groups(layout, batch, heads);
    EXPECT_EQ(groups.sequences(), sequences) << batch << " x " << heads;
    EXPECT_EQ(groups.heads(), want) << batch << " x " << heads;
    EXPECT_EQ(groups.count(), count) << batch << " x " << heads;
  }
}

TEST(ShardedMixerTrace, HasEveryActionOfBothPasses) {
  const Problem problem(Variants()[0], 1, 8 * 4);
  WavefrontTrace trace;
  problem.Sharded(4, &trace);
  // One sequence of two heads: two groups. 36 pairs of 8 chunks; forward twice
  // (system and attention), backward three times.
  const std::vector<WavefrontSpan> spans = trace.Spans();
  EXPECT_EQ(spans.size(), 2u * 5u * 36u);
  for (const WavefrontSpan& span : spans) EXPECT_LE(span.start, span.end);
}

// What an accelerator is given a call for: none more than for one sequence.
TEST(ShardedMixerTrace, HasOneActionForTheSequencesOfAGroup) {
  const Problem problem(Variants()[0], 12, 4 * 4);
  WavefrontTrace trace;
  problem.Sharded(2, &trace);
  // Four groups of three sequences; 10 pairs of 4 chunks.
  EXPECT_EQ(trace.Spans().size(), 4u * 5u * 10u);
}

}  // namespace
}  // namespace cubit
