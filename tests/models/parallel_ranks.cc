// SPDX-License-Identifier: Apache-2.0

#include "tests/models/parallel_ranks.h"

#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_split.h"
#include "absl/time/time.h"

#include "ops/rotary.h"
#include "parallel/sequence_layout.h"
#include "runtime/communicator_threads.h"

namespace cubit {
namespace testing {
namespace {

// Indices of the local part's elements in the global tensor.
std::vector<int64_t> PlacesOf(const ShardSpec& spec) {
  const Shape local = spec.local_shape();
  int64_t inner = 1;
  for (int i = spec.dim + 1; i < local.rank(); ++i) inner *= local[i];
  const int64_t run = spec.count * inner;
  std::vector<int64_t> places;
  for (int64_t i = 0; i < local.num_elements(); ++i) {
    places.push_back(i / run * spec.global_shape[spec.dim] * inner +
                     spec.begin * inner + i % run);
  }
  return places;
}

std::vector<float> ValuesOf(const ConstTensor& tensor) {
  const float* data = tensor.data<float>();
  return std::vector<float>(data, data + tensor.num_elements());
}

}  // namespace

ParallelRank::ParallelRank(const ModelConfig& config, const RankLayout& layout,
                           const RankBatch& rank_batch, int rank,
                           std::unique_ptr<Communicator> world)
    : batch(rank_batch), config_(config), world_(std::move(world)) {
  shard.tp_size = layout.tp;
  shard.tp_rank = rank % layout.tp;
  shard.cp_size = layout.cp;
  shard.cp_rank = rank / layout.tp;
  shard.cp_method = layout.method;
  context.stream = &stream;
  Tensor table;
  Allocate([&](Arena& arena) {
    table = arena.Allocate(DType::kFloat32, {batch.seq_len, config.head_dim()});
  });
  RotaryTable(config.rope_base, table, stream);
  context.rotary_table = table;
  if (batch.documents) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < batch.batch * batch.seq_len; ++i) {
      ids.push_back(static_cast<int32_t>(i % batch.seq_len / 17));
    }
    if (shard.shards_sequence()) {
      std::vector<int32_t> by_chunks(ids.size());
      SequenceLayout(batch.seq_len, layout.cp)
          .OrderByChunks(batch.batch, ids.data(), by_chunks.data());
      ids = std::move(by_chunks);
    }
    tokens_.push_back(std::make_unique<HostTensor<int32_t>>(
        shard.SegmentsShape(batch.batch, batch.seq_len), std::move(ids)));
    context.mask.segment_ids = tokens_.back()->view();
  }
  if (layout.tp * layout.cp == 1) return;  // layers see no group at all
  context.parallel = &parallel;
  auto tp = world_->Split(shard.cp_rank, shard.tp_rank, "tp");
  auto cp = world_->Split(shard.tp_rank, shard.cp_rank, "cp");
  auto lane = world_->Split(shard.tp_rank, shard.cp_rank, "cp_lane");
  CUBIT_CHECK_OK(tp);
  CUBIT_CHECK_OK(cp);
  CUBIT_CHECK_OK(lane);
  tp_ = *std::move(tp);
  cp_ = *std::move(cp);
  cp_lane_ = std::make_unique<CommunicationLane>(*std::move(lane));
  parallel.tp = tp_.get();
  parallel.cp = cp_.get();
  parallel.cp_lane = cp_lane_.get();
  if (layout.tp == 1) return;
  Allocate([&](Arena& arena) {
    const Shape shape = {num_rows(), config.hidden_size};
    parallel.gathered = arena.Allocate(DType::kFloat32, shape);
    parallel.partial = arena.Allocate(DType::kFloat32, shape);
  });
}

void ParallelRank::InitializeParameters() {
  for (Parameter& parameter : store.parameters()) {
    if (parameter.init.stddev == 0) parameter.init.stddev = 0.1;
  }
  CUBIT_CHECK_OK(store.Allocate(/*with_gradients=*/true));
  CUBIT_CHECK_OK(store.Initialize(/*seed=*/7, stream));
}

void ParallelRank::Allocate(const std::function<void(Arena&)>& allocate) {
  Arena measure = Arena::Measuring();
  allocate(measure);
  auto arena =
      Arena::Create(measure.used_bytes(), MemoryCategory::kActivations);
  CUBIT_CHECK_OK(arena);
  arenas_.push_back(std::make_unique<Arena>(*std::move(arena)));
  allocate(*arenas_.back());
}

int64_t ParallelRank::WholeRow(int64_t row) const {
  const SequenceLayout layout(batch.seq_len, shard.cp_size);
  const int64_t b = row / layout.local_seq_len();
  const int64_t t = row % layout.local_seq_len();
  for (const int chunk : layout.ChunksOf(shard.cp_rank)) {
    const int64_t offset = t - layout.LocalBegin(chunk);
    if (offset >= 0 && offset < layout.chunk_len()) {
      return b * batch.seq_len + layout.GlobalBegin(chunk) + offset;
    }
  }
  CUBIT_CHECK(false) << row;
  return -1;
}

Tensor ParallelRank::RandomRows(const std::string& name, int64_t width) {
  const HostTensor<float> whole =
      RandomNormal(5, name, {batch.batch * batch.seq_len, width});
  const Tensor rows = PoisonedRows(width);
  const int64_t begin = shard.tp_rank * num_local_rows();
  for (int64_t i = 0; i < rows.num_elements(); ++i) {
    rows.data<float>()[i] =
        whole[WholeRow(begin + i / width) * width + i % width];
  }
  return rows;
}

Tensor ParallelRank::PoisonedRows(int64_t width) {
  tensors_.push_back(
      std::make_unique<HostTensor<float>>(Poisoned({num_local_rows(), width})));
  return tensors_.back()->view();
}

Tensor ParallelRank::TokenRows(const std::vector<int32_t>& whole) {
  std::vector<int32_t> rows;
  for (int64_t row = 0; row < num_rows(); ++row) {
    rows.push_back(whole[static_cast<size_t>(WholeRow(row))]);
  }
  tokens_.push_back(std::make_unique<HostTensor<int32_t>>(Shape{num_rows()},
                                                          std::move(rows)));
  return tokens_.back()->view();
}

void ParallelRank::AddRows(const std::string& name, ConstTensor local) {
  const int64_t width = local.dim(1);
  const int64_t begin = shard.tp_rank * num_local_rows();
  Piece piece = {
      name, batch.batch * batch.seq_len * width, {}, ValuesOf(local)};
  for (int64_t i = 0; i < local.num_elements(); ++i) {
    piece.places.push_back(WholeRow(begin + i / width) * width + i % width);
  }
  pieces_.push_back(std::move(piece));
}

void ParallelRank::AddTokens(const std::string& name, ConstTensor values) {
  Piece piece = {name, batch.batch * batch.seq_len, {}, ValuesOf(values)};
  for (int64_t row = 0; row < num_rows(); ++row) {
    piece.places.push_back(WholeRow(row));
  }
  pieces_.push_back(std::move(piece));
}

void ParallelRank::AddGradients() {
  for (const Parameter& parameter : store.parameters()) {
    // Else the sum over the ranks would count it several times.
    EXPECT_EQ(parameter.sum_over_tp,
              parameter.shard.is_whole() && shard.tp_size > 1)
        << parameter.name;
    pieces_.push_back(
        {parameter.name, parameter.shard.global_shape.num_elements(),
         PlacesOf(parameter.shard), ValuesOf(parameter.gradient)});
  }
}

void ParallelRank::MergeInto(WholeTensors* whole) const {
  for (const Piece& piece : pieces_) {
    std::vector<double>& tensor = (*whole)[piece.name];
    tensor.resize(static_cast<size_t>(piece.whole_size));
    for (size_t i = 0; i < piece.values.size(); ++i) {
      tensor[static_cast<size_t>(piece.places[i])] +=
          static_cast<double>(piece.values[i]);
    }
  }
}

WholeTensors RunRanks(const ModelConfig& config, const RankLayout& layout,
                      const RankBatch& batch, const RankBody& body) {
  auto worlds = MakeThreadCommunicators("world", layout.tp * layout.cp,
                                        absl::Seconds(30));
  std::vector<std::unique_ptr<ParallelRank>> ranks(worlds.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < worlds.size(); ++i) {
    threads.emplace_back([&, i] {
      ranks[i] = std::make_unique<ParallelRank>(
          config, layout, batch, static_cast<int>(i), std::move(worlds[i]));
      body(*ranks[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  WholeTensors whole;
  for (const auto& rank : ranks) {
    EXPECT_TRUE(rank->parallel.status.ok()) << rank->parallel.status;
    rank->MergeInto(&whole);
  }
  return whole;
}

void ExpectClose(const WholeTensors& got, const WholeTensors& want,
                 double tolerance) {
  std::set<std::string> seen;
  for (const auto& item : got) {
    const std::vector<std::string> parts = absl::StrSplit(item.first, '@');
    ASSERT_EQ(want.count(parts[0]), 1u) << item.first;
    EXPECT_TRUE(IsClose(item.second, want.at(parts[0]), tolerance))
        << item.first;
    seen.insert(parts[0]);
  }
  EXPECT_EQ(seen.size(), want.size());
}

}  // namespace testing
}  // namespace cubit
