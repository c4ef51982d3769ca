// SPDX-License-Identifier: Apache-2.0

#include "parallel/sequence_exchange.h"

#include <memory>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/communicator_threads.h"

namespace cubit {
namespace {

constexpr int64_t kBatch = 2;
constexpr int64_t kHeads = 4;
constexpr float kPadding = -1.0f;
// On 1, 2 and 4 ranks 20, 10 and 5 columns of heads: with and without a part
// that vectors can copy, and with a rest.
const std::vector<int64_t> kWidths = {4, 1};

// Says of an element where it belongs: b, t, the head, the column of the head.
float Label(int64_t b, int64_t t, int64_t head, int64_t column) {
  return static_cast<float>(((b * 100 + t) * 10 + head) * 10 + column);
}

void AppendRow(int64_t b, int64_t t, int64_t first_head, int64_t heads,
               std::vector<float>* values) {
  int64_t before = 0;
  for (const int64_t width : kWidths) {
    for (int64_t i = 0; i < heads * width; ++i) {
      values->push_back(
          Label(b, t, first_head + i / width, before + i % width));
    }
    before += width;
  }
}

// A tensor of one rank: rows [B, tokens], `heads` from `first_head`, and
// `padding` more columns.
std::vector<float> Labelled(const std::vector<int64_t>& tokens,
                            int64_t first_head, int64_t heads,
                            int64_t padding) {
  std::vector<float> values;
  for (int64_t b = 0; b < kBatch; ++b) {
    for (const int64_t t : tokens) {
      AppendRow(b, t, first_head, heads, &values);
      values.insert(values.end(), static_cast<size_t>(padding), kPadding);
    }
  }
  return values;
}

std::vector<int64_t> TokensOf(const SequenceLayout& layout, int rank) {
  std::vector<int64_t> tokens;
  for (const int chunk : layout.ChunksOf(rank)) {
    for (int64_t i = 0; i < layout.chunk_len(); ++i) {
      tokens.push_back(layout.GlobalBegin(chunk) + i);
    }
  }
  return tokens;
}

Tensor View(std::vector<float>& values, int64_t seq_len) {
  const auto size = static_cast<int64_t>(values.size());
  return Tensor(values.data(), DType::kFloat32,
                {kBatch, seq_len, size / (kBatch * seq_len)});
}

// There and back on one rank, with columns beyond the heads on both sides.
void ExchangeOnRank(const SequenceLayout& layout, Communicator& cp) {
  const SequenceExchange exchange(layout, kHeads, kWidths);
  const int64_t local_len = layout.local_seq_len();
  std::vector<int64_t> all_tokens;
  for (int64_t t = 0; t < layout.seq_len(); ++t) all_tokens.push_back(t);
  const std::vector<float> want_local =
      Labelled(TokensOf(layout, cp.rank()), 0, kHeads, /*padding=*/2);
  const std::vector<float> want_whole =
      Labelled(all_tokens, cp.rank() * exchange.num_local_heads(),
               exchange.num_local_heads(), /*padding=*/3);
  const int64_t elements = exchange.BufferElements(kBatch);
  std::vector<float> send(static_cast<size_t>(elements));
  std::vector<float> receive(send.size());
  const SequenceExchangeBuffers buffers = {
      Tensor(send.data(), DType::kFloat32, {elements}),
      Tensor(receive.data(), DType::kFloat32, {elements})};
  Stream stream;
  std::vector<float> local = want_local;
  std::vector<float> whole(want_whole.size(), kPadding);
  ASSERT_TRUE(exchange
                  .ToHeads(View(local, local_len), buffers, cp,
                           View(whole, layout.seq_len()), stream)
                  .ok());
  EXPECT_EQ(whole, want_whole) << "rank " << cp.rank();
  local.assign(local.size(), kPadding);
  ASSERT_TRUE(exchange
                  .ToSequence(View(whole, layout.seq_len()), buffers, cp,
                              View(local, local_len), stream)
                  .ok());
  EXPECT_EQ(local, want_local) << "rank " << cp.rank();
}

class SequenceExchangeRanks : public ::testing::TestWithParam<int> {};

TEST_P(SequenceExchangeRanks, MovesHeadsAndPutsTheSequenceInOrder) {
  const SequenceLayout layout(24, GetParam());
  auto ranks = MakeThreadCommunicators("cp", GetParam(), absl::Seconds(30));
  std::vector<std::thread> threads;
  for (auto& rank : ranks) {
    threads.emplace_back([&] { ExchangeOnRank(layout, *rank); });
  }
  for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(Sizes, SequenceExchangeRanks,
                         ::testing::Values(1, 2, 4));

TEST(SequenceExchange, ReturnsTheErrorOfItsGroup) {
  const SequenceLayout layout(8, 2);
  auto ranks = MakeThreadCommunicators("cp", 2, absl::Seconds(30));
  ranks[1]->Abort(absl::DataLossError("a test"));
  const SequenceExchange exchange(layout, kHeads, {1});
  std::vector<float> values(kBatch * 8 * 2);
  const int64_t size = exchange.BufferElements(kBatch);
  std::vector<float> send(static_cast<size_t>(size));
  std::vector<float> receive(send.size());
  const SequenceExchangeBuffers buffers = {
      Tensor(send.data(), DType::kFloat32, {size}),
      Tensor(receive.data(), DType::kFloat32, {size})};
  Stream stream;
  EXPECT_EQ(
      exchange
          .ToHeads(View(values, 4), buffers, *ranks[0], View(values, 8), stream)
          .code(),
      absl::StatusCode::kDataLoss);
}

TEST(SequenceExchangeDeathTest, HeadsMustBeDividedByTheRanks) {
  EXPECT_DEATH(SequenceExchange(SequenceLayout(24, 3), kHeads, {1}),
               "num_heads");
}

}  // namespace
}  // namespace cubit
