// SPDX-License-Identifier: Apache-2.0

#include "ops/chunked_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "ops/attention.h"
#include "ops/attention_reference.h"
#include "runtime/bfloat16.h"
#include "tests/ops/chunked_case.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::ActivationArray;
using ::cubit::testing::Activations;
using ::cubit::testing::Append;
using ::cubit::testing::Chunk;
using ::cubit::testing::ChunkOrder;
using ::cubit::testing::Cut;
using ::cubit::testing::Documents;
using ::cubit::testing::ExpectWithinBudget;
using ::cubit::testing::HeadArray;
using ::cubit::testing::HeadSize;
using ::cubit::testing::HostTensor;
using ::cubit::testing::InOrder;
using ::cubit::testing::IsOnGpu;
using ::cubit::testing::Margins;
using ::cubit::testing::Named;
using ::cubit::testing::OwnedRowSums;
using ::cubit::testing::Poisoned;
using ::cubit::testing::Range;
using ::cubit::testing::SolutionArray;
using ::cubit::testing::TestMask;
using ::cubit::testing::ViewOrAbsent;

struct AttentionCase {
  const char* name;
  HeadSize size;
  std::vector<int64_t> lengths;
  double stddev = 1;
  std::vector<int64_t> documents = {};
};

void PrintTo(const AttentionCase& c, std::ostream* out) { *out << c.name; }

// One attention, chunk by chunk.
class ChunkedRun {
 public:
  explicit ChunkedRun(const AttentionCase& c,
                      Activations activations = Activations::kFloat32)
      : size(c.size),
        chunks(Cut(c.lengths, c.size.seq_len)),
        scale(1 / std::sqrt(static_cast<float>(c.size.head_dim))),
        q({c.size, "q", c.stddev}, activations),
        k({c.size, "k", c.stddev}, activations),
        v({c.size, "v"}, activations),
        d_out({c.size, "d_out"}, activations) {
    if (c.documents.empty()) return;
    mask = TestMask(true, Documents(size.batch, size.seq_len, c.documents));
  }

  // Outputs start as NaN; d_q, d_k and d_v as `d_start`, which is added to.
  // In vectors, cuDNN may serve pairs: it reads `out` in bf16.
  Named<float> Op(ChunkOrder order, const HeadArray& d_start,
                  Margins margins = Margins::kOdd) const {
    const bool vectors = margins == Margins::kVectors;
    HeadArray out(size, margins), d_q = d_start.Between(margins), d_k = d_q,
                                  d_v = d_q;
    SolutionArray narrow_out(
        size, vectors ? Activations::kBFloat16 : Activations::kFloat32);
    HostTensor<float> lse =
        Poisoned({size.batch, size.num_heads, size.seq_len});
    const int count = static_cast<int>(chunks.size());
    for (int i : InOrder(Range(0, count), order)) {
      const Chunk& rows = chunks[static_cast<size_t>(i)];
      HostTensor<float> chunk_lse =
          ForwardRows(i, order, &out, vectors ? &narrow_out : nullptr);
      const ConstHeadTensor read_out =
          vectors ? rows.Of(std::as_const(narrow_out).view())
                  : ConstHeadTensor();
      rows.Put(chunk_lse, &lse);
      HostTensor<float> delta = Poisoned(chunk_lse.shape());
      Stream stream;
      AttentionChunkDelta(rows.Of(std::as_const(out).view()),
                          rows.Of(d_out.activation()), delta.view(), stream);
      for (int j : InOrder(Range(0, i + 1), order)) {
        const Chunk& keys = chunks[static_cast<size_t>(j)];
        WithMask(i, j, [&](const ChunkMask& pair) {
          AttentionChunkBackward(
              {rows.Of(q.activation()), rows.Of(d_out.activation()),
               chunk_lse.view(), delta.view(), read_out},
              keys.Of(k.activation()), keys.Of(v.activation()), scale, pair,
              {rows.Of(d_q.view()), keys.Of(d_k.view()), keys.Of(d_v.view())},
              stream);
        });
      }
    }
    for (const HeadArray* array : {&out, &d_q, &d_k, &d_v}) {
      EXPECT_TRUE(array->RestIsPoisoned());
    }
    return {{"out", out.Values()},
            {"lse", lse.values()},
            {"d_q", d_q.Values()},
            {"d_k", d_k.Values()},
            {"d_v", d_v.Values()}};
  }
  Named<float> Op(ChunkOrder order) const {
    return Op(order, HeadArray(size, "zero", 0.0));
  }

  template <typename T>
  Named<T> Reference() const {
    Named<T> results;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const auto pair_mask = mask.ForReference(pair / size.num_heads);
      const double factor = static_cast<double>(scale);
      const auto forward = reference::AttentionForward(
          q.Head<T>(pair), k.Head<T>(pair), v.Head<T>(pair), factor, pair_mask);
      const auto d = reference::AttentionBackward(
          q.Head<T>(pair), k.Head<T>(pair), v.Head<T>(pair), factor, pair_mask,
          d_out.Head<T>(pair));
      Append(forward.out.values(), &results["out"]);
      Append(forward.lse, &results["lse"]);
      Append(d.d_q.values(), &results["d_q"]);
      Append(d.d_k.values(), &results["d_k"]);
      Append(d.d_v.values(), &results["d_v"]);
    }
    return results;
  }

  double ScoreRoundings() const {
    double largest = 0;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const auto scores =
          reference::ScaledProduct(static_cast<double>(scale),
                                   q.Head<double>(pair), k.Head<double>(pair));
      for (double s : scores.values()) largest = std::max(largest, std::abs(s));
    }
    return testing::ScoreRoundings(largest, size);
  }

  HeadSize size;
  std::vector<Chunk> chunks;
  float scale;
  TestMask mask;
  ActivationArray q, k, v, d_out;

 private:
  template <typename Body>
  void WithMask(int row_chunk, int key_chunk, const Body& body) const {
    const ConstTensor ids = mask.ForOp().segment_ids;
    const auto of_rows =
        chunks[static_cast<size_t>(row_chunk)].Copy<int32_t>(ids);
    const auto of_keys =
        chunks[static_cast<size_t>(key_chunk)].Copy<int32_t>(ids);
    body(
        {row_chunk == key_chunk, ViewOrAbsent(of_rows), ViewOrAbsent(of_keys)});
  }

  // Returns lse of the chunk. Its sums become its rows of `out` and, if there
  // is one, `narrow_out`.
  HostTensor<float> ForwardRows(int chunk, ChunkOrder order, HeadArray* out,
                                SolutionArray* narrow_out) const {
    const Chunk& rows = chunks[static_cast<size_t>(chunk)];
    Stream stream;
    OwnedRowSums owned(
        {size.batch, size.num_heads, rows.length, size.head_dim});
    RowSums sums = owned.view();
    sums.weighted = rows.Of(out->view());
    BeginRowSums(sums, stream);
    for (int other : InOrder(Range(0, chunk + 1), order)) {
      const Chunk& keys = chunks[static_cast<size_t>(other)];
      WithMask(chunk, other, [&](const ChunkMask& pair) {
        AttentionChunkForward(rows.Of(q.activation()), keys.Of(k.activation()),
                              keys.Of(v.activation()), scale, pair, sums,
                              stream);
      });
    }
    HostTensor<float> lse = Poisoned(owned.row_max.shape());
    if (narrow_out != nullptr) {
      FinishRowSums(sums, rows.Of(narrow_out->view()), lse.view(), stream);
    }
    FinishRowSums(sums, sums.weighted, lse.view(), stream);
    return lse;
  }
};

class ChunkedAttention : public ::testing::TestWithParam<AttentionCase> {};

// The budget is that of whole sequences (attention_test.cc).
TEST_P(ChunkedAttention, MatchesReferenceInEveryOrder) {
  const ChunkedRun run(GetParam());
  const auto plain = run.Reference<float>();
  const auto exact = run.Reference<double>();
  for (const ChunkOrder order :
       {ChunkOrder::kAscending, ChunkOrder::kDescending,
        ChunkOrder::kOddFirst}) {
    SCOPED_TRACE(static_cast<int>(order));
    ExpectWithinBudget(run.Op(order), plain, exact, run.ScoreRoundings());
  }
}

TEST_P(ChunkedAttention, TakesBFloat16OnAGpu) {
  if (!IsOnGpu()) GTEST_SKIP() << "skipped: fp32 alone on a CPU";
  const ChunkedRun run(GetParam(), Activations::kBFloat16);
  const HeadArray zeros(GetParam().size, "zero", 0.0);
  for (const Margins margins : {Margins::kOdd, Margins::kVectors}) {
    SCOPED_TRACE(static_cast<int>(margins));
    // Scores of bf16 operands are as exact as those of fp32 ones.
    ExpectWithinBudget(run.Op(ChunkOrder::kOddFirst, zeros, margins),
                       run.Reference<float>(), run.Reference<double>(),
                       /*score_roundings=*/1,
                       testing::ProductRoundings(Activations::kBFloat16));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ChunkedAttention,
    ::testing::Values(
        AttentionCase{"OneRowEach", {1, 2, 3, 5}, {1, 1, 1}},
        AttentionCase{"OneChunk", {1, 1, 70, 16}, {70}},
        AttentionCase{"TwoTiles", {1, 2, 128, 64}, {64, 64}},
        AttentionCase{"FourOdd", {2, 2, 132, 16}, {33, 33, 33, 33}},
        AttentionCase{"SixOdd", {1, 1, 210, 8}, {35, 35, 35, 35, 35, 35}},
        AttentionCase{"Unequal", {2, 1, 200, 16}, {100, 3, 65, 32}},
        AttentionCase{"Dim80", {1, 1, 140, 80}, {70, 70}},
        AttentionCase{"Dim128", {1, 1, 140, 128}, {70, 70}},
        AttentionCase{"Sharp", {1, 1, 150, 16}, {75, 75}, 3.0},
        AttentionCase{"Documents",
                      {2, 2, 240, 16},
                      {60, 60, 60, 60},
                      1.0,
                      {1, 30, 200, 201}},
        AttentionCase{"DocumentsAtChunks",
                      {2, 1, 210, 8},
                      {70, 70, 70},
                      1.0,
                      {70, 140}}));

TEST(ChunkedAttention, WholeTilesGiveTheBitsOfTheWholeSequence) {
  if (IsOnGpu()) GTEST_SKIP() << "skipped: a GPU has other kernels for it";
  const ChunkedRun run({"", {2, 2, 250, 16}, {128, 64, 58}});
  HeadArray out(run.size);
  HostTensor<float> lse = Poisoned({2, 2, 250});
  Stream stream;
  AttentionForward(run.q.view(), run.k.view(), run.v.view(), run.scale, {},
                   out.view(), lse.view(), stream);
  const Named<float> got = run.Op(ChunkOrder::kAscending);
  EXPECT_EQ(got.at("out"), out.Values());
  EXPECT_EQ(got.at("lse"), lse.values());
}

TEST(ChunkedAttention, TwoRunsGiveTheSameBits) {
  const ChunkedRun run({"", {2, 2, 150, 8}, {50, 50, 50}, 1.0, {10, 140}});
  EXPECT_EQ(run.Op(ChunkOrder::kOddFirst), run.Op(ChunkOrder::kOddFirst));
}

// The values of `array` with nothing between the rows.
HostTensor<float> WithoutGaps(const HeadArray& array) {
  const HeadSize& s = array.size();
  HostTensor<float> columns({s.batch, s.seq_len, s.num_heads * s.head_dim});
  const HeadTensor rows = HeadsOf(columns.view(), 0, s.num_heads, s.head_dim);
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t t = 0; t < s.seq_len; ++t) {
      for (int64_t h = 0; h < s.num_heads; ++h) {
        const float* from = array.view().row<float>(b, t, h);
        std::copy(from, from + s.head_dim, rows.row<float>(b, t, h));
      }
    }
  }
  return columns;
}

// A GPU reads tiles in vectors, element by element, and converted.
TEST(ChunkedAttention, WhereAndAsWhatKeysLieChangesNoBit) {
  for (const int64_t head_dim : {16, 64, 80}) {
    const HeadSize size = {2, 2, 70, head_dim};
    const auto narrow =
        IsOnGpu() ? Activations::kBFloat16 : Activations::kFloat32;
    const ActivationArray q({size, "q"}, narrow), k({size, "k"}, narrow),
        v({size, "v"}, narrow);
    const HostTensor<float> flat_k = WithoutGaps(k), flat_v = WithoutGaps(v);
    const auto flat = [&size](const HostTensor<float>& x) {
      return HeadsOf(x.view(), 0, size.num_heads, size.head_dim);
    };
    const auto run = [&size](ConstHeadTensor queries, ConstHeadTensor keys,
                             ConstHeadTensor values) {
      OwnedRowSums sums(size);
      Stream stream;
      BeginRowSums(sums.view(), stream);
      AttentionChunkForward(queries, keys, values, 0.3f, {true, {}, {}},
                            sums.view(), stream);
      return sums.weighted.Values();
    };
    for (const ConstHeadTensor& queries : {q.view(), q.activation()}) {
      const std::vector<float> want = run(queries, k.view(), v.view());
      EXPECT_EQ(run(queries, flat(flat_k), flat(flat_v)), want) << head_dim;
      EXPECT_EQ(run(queries, k.activation(), v.activation()), want) << head_dim;
    }
  }
}

TEST(ChunkedAttention, GradientsAreAddedToWhatIsThere) {
  const ChunkedRun run({"", {1, 2, 40, 8}, {40}});
  const HeadArray old(run.size, "old");
  const Named<float> from_zero = run.Op(ChunkOrder::kAscending);
  const Named<float> got = run.Op(ChunkOrder::kAscending, old);
  for (const char* name : {"d_q", "d_k", "d_v"}) {
    std::vector<float> want = old.Values();
    for (size_t i = 0; i < want.size(); ++i) want[i] += from_zero.at(name)[i];
    EXPECT_EQ(got.at(name), want) << name;
  }
}

TEST(ChunkedAttention, AQueryThatMeetsNoKeyGetsZero) {
  const HeadSize size = {1, 2, 20, 8};
  const HeadArray x(size, "x"), nan(size);
  const HostTensor<int32_t> zeros({1, 20}, 0), ones({1, 20}, 1);
  OwnedRowSums sums(size);
  HeadArray out(size);
  HostTensor<float> lse = Poisoned({1, 2, 20});
  Stream stream;
  BeginRowSums(sums.view(), stream);
  // Keys of another document are not read.
  AttentionChunkForward(x.view(), nan.view(), nan.view(), 1.0f,
                        {false, ones.view(), zeros.view()}, sums.view(),
                        stream);
  FinishRowSums(sums.view(), out.view(), lse.view(), stream);
  EXPECT_EQ(out.Values(), std::vector<float>(320, 0));
  EXPECT_EQ(lse.values(),
            std::vector<float>(40, -std::numeric_limits<float>::infinity()));

  HeadArray d(size, "d");
  const std::vector<float> old = d.Values();
  AttentionChunkBackward({x.view(), x.view(), lse.view(), lse.view(), {}},
                         nan.view(), nan.view(), 1.0f,
                         {false, ones.view(), zeros.view()},
                         {d.view(), d.view(), d.view()}, stream);
  EXPECT_EQ(d.Values(), old);
}

TEST(ChunkedAttention, OutIsRoundedToBFloat16OnAGpu) {
  if (!IsOnGpu()) GTEST_SKIP() << "skipped: fp32 alone on a CPU";
  const HeadSize size = {1, 2, 40, 8};
  const HeadArray x(size, "x");
  OwnedRowSums sums(size);
  HeadArray wide(size);
  // All NaN: what is forgotten shows.
  const ActivationArray narrow(HeadArray(size), Activations::kBFloat16);
  HeadTensor out = wide.view();
  const ConstHeadTensor target = narrow.activation();
  out.data = const_cast<void*>(target.data);
  out.dtype = target.dtype;
  out.batch_stride = target.batch_stride;
  out.seq_stride = target.seq_stride;
  out.head_stride = target.head_stride;
  HostTensor<float> lse = Poisoned({1, 2, 40});
  Stream stream;
  BeginRowSums(sums.view(), stream);
  AttentionChunkForward(x.view(), x.view(), x.view(), 1.0f, {true, {}, {}},
                        sums.view(), stream);
  FinishRowSums(sums.view(), wide.view(), lse.view(), stream);
  FinishRowSums(sums.view(), out, lse.view(), stream);
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t t = 0; t < 40; ++t) {
      for (int64_t c = 0; c < 8; ++c) {
        EXPECT_EQ(ToFloat(target.row<BFloat16>(0, t, h)[c]),
                  ToFloat(ToBFloat16(wide.view().row<float>(0, t, h)[c])));
      }
    }
  }
}

TEST(ChunkedAttention, HugeLogitsOverflowNothing) {
  const ChunkedRun run({"", {1, 1, 130, 16}, {65, 65}, 60});
  for (const ChunkOrder order :
       {ChunkOrder::kAscending, ChunkOrder::kDescending}) {
    for (const auto& [name, values] : run.Op(order)) {
      for (float value : values) ASSERT_TRUE(std::isfinite(value)) << name;
    }
  }
}

TEST(ChunkedAttentionDeathTest, DocumentsOfBothChunksOrOfNone) {
  const HeadSize size = {1, 1, 4, 8};
  const HeadArray x(size, "x");
  const HostTensor<int32_t> ids({1, 4}, 0);
  OwnedRowSums sums(size);
  Stream stream;
  EXPECT_DEATH(
      AttentionChunkForward(x.view(), x.view(), x.view(), 1.0f,
                            {false, ids.view(), {}}, sums.view(), stream),
      "query_segments.empty");
}

}  // namespace
}  // namespace cubit
