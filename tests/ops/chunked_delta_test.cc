// SPDX-License-Identifier: Apache-2.0
//
// Delta by chunks.

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "ops/chunked_solve.h"
#include "ops/delta_solve.h"
#include "ops/delta_solve_reference.h"
#include "tests/ops/chunked_case.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::ActivationArray;
using ::cubit::testing::Activations;
using ::cubit::testing::Append;
using ::cubit::testing::Chunk;
using ::cubit::testing::ChunkedForm;
using ::cubit::testing::ChunkOrder;
using ::cubit::testing::Cut;
using ::cubit::testing::Documents;
using ::cubit::testing::ExpectWithinBudget;
using ::cubit::testing::HeadArray;
using ::cubit::testing::HeadSize;
using ::cubit::testing::HostTensor;
using ::cubit::testing::InOrder;
using ::cubit::testing::IsClose;
using ::cubit::testing::IsOnGpu;
using ::cubit::testing::Margins;
using ::cubit::testing::Named;
using ::cubit::testing::OwnedRowSums;
using ::cubit::testing::Poisoned;
using ::cubit::testing::ProductRoundings;
using ::cubit::testing::Range;
using ::cubit::testing::SolutionArray;
using ::cubit::testing::TestMask;
using ::cubit::testing::ToDouble;
using ::cubit::testing::ViewOrAbsent;

constexpr float kScale = 0.3f;

struct DeltaCase {
  const char* name;
  HeadSize size;
  std::vector<int64_t> lengths;
  double stddev = 1;
  double beta_stddev = 0.7;
  std::vector<int64_t> documents = {};
};

void PrintTo(const DeltaCase& c, std::ostream* out) { *out << c.name; }

HeadSize BetaSize(const HeadSize& size) {
  return {size.batch, size.num_heads, size.seq_len, 1};
}

// -inf, for rows that see no key, as a number that cannot be mistaken.
template <typename T>
std::vector<T> FiniteLse(std::vector<T> lse) {
  for (T& value : lse) {
    if (value == -std::numeric_limits<T>::infinity()) value = T(-1000);
  }
  return lse;
}

struct DeltaInputs {
  explicit DeltaInputs(const DeltaCase& c,
                       Activations activations = Activations::kFloat32)
      : size(c.size),
        w({c.size, "w", c.stddev}, activations),
        k({c.size, "k", c.stddev}, activations),
        v({c.size, "v"}, activations),
        beta({BetaSize(c.size), "beta", c.beta_stddev}, activations),
        d_x(c.size, "d_x") {
    if (c.documents.empty()) return;
    mask = TestMask(true, Documents(size.batch, size.seq_len, c.documents));
  }

  template <typename T>
  Named<T> Reference() const {
    Named<T> results;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const auto pair_mask = mask.ForReference(pair / size.num_heads);
      const std::vector<T> beta_values = beta.Head<T>(pair).values();
      const auto forward = reference::DeltaSolveForward(
          w.Head<T>(pair), k.Head<T>(pair), v.Head<T>(pair), beta_values,
          static_cast<double>(kScale), pair_mask);
      const auto d = reference::DeltaSolveBackward(
          w.Head<T>(pair), k.Head<T>(pair), beta_values,
          static_cast<double>(kScale), pair_mask, forward.x, d_x.Head<T>(pair));
      Append(forward.x.values(), &results["x"]);
      Append(FiniteLse(forward.lse), &results["lse"]);
      Append(d.d_w.values(), &results["d_w"]);
      Append(d.d_k.values(), &results["d_k"]);
      Append(d.d_v.values(), &results["d_v"]);
      Append(d.d_beta, &results["d_beta"]);
    }
    return results;
  }

  double ScoreRoundings() const {
    double largest = 0;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const auto scores =
          reference::ScaledProduct(static_cast<double>(kScale),
                                   w.Head<double>(pair), k.Head<double>(pair));
      for (double s : scores.values()) largest = std::max(largest, std::abs(s));
    }
    return testing::ScoreRoundings(largest, size);
  }

  HeadSize size;
  TestMask mask;
  ActivationArray w, k, v, beta;
  HeadArray d_x;
};

// Delta solved chunk by chunk, there and back. Outputs start as NaN.
class ChunkedDelta {
 public:
  // form.in_place: outputs share memory with inputs wherever the header says
  // that they may; solutions are fp32 then. Activations are those of `in`.
  ChunkedDelta(const DeltaInputs& in, const std::vector<int64_t>& lengths,
               ChunkOrder order, const ChunkedForm& form = {})
      : in_(in),
        order_(order),
        in_place_(form.in_place),
        x_(in.size, form.solutions),
        kernel_x_(in.size, form.margins()),
        g_(in.d_x.Between(form.margins())),
        y_(in.size, form.solutions),
        d_w_(HeadArray(in.size, "zero", 0.0).Between(form.margins())),
        d_k_(d_w_),
        d_beta_(BetaSize(in.size)) {
    for (const Chunk& chunk : Cut(lengths, in.size.seq_len)) {
      parts_.emplace_back(in, chunk, form.margins());
    }
  }

  void Forward() {
    for (int c = 0; c < num_chunks(); ++c) {
      Part& rows = parts_[static_cast<size_t>(c)];
      BeginRowSums(rows.sums.view(), stream_);
      for (int other : InOrder(Range(0, c), order_)) {
        const Part& columns = parts_[static_cast<size_t>(other)];
        DeltaChunkUpdate(Factors(rows), Factors(columns),
                         columns.chunk.Of(std::as_const(x_).view()),
                         rows.sums.view(), stream_);
      }
      DeltaChunkSolve(Factors(rows), rows.chunk.Of(in_.v.activation()),
                      rows.sums.view(), rows.chunk.Of(x_.view()),
                      rows.lse.view(), KernelX(&rows), stream_);
    }
  }

  void Backward() {
    for (int c = num_chunks() - 1; c >= 0; --c) SolveAdjoint(c);
    for (int c : InOrder(Range(0, num_chunks()), order_)) {
      Part& rows = parts_[static_cast<size_t>(c)];
      for (int other : InOrder(Range(0, c + 1), order_)) {
        const Part& columns = parts_[static_cast<size_t>(other)];
        DeltaChunkScoreGradients(
            Factors(rows), {rows.lse.view(), rows.delta.view(), Y(rows)},
            Factors(columns), columns.chunk.Of(std::as_const(x_).view()),
            c == other, rows.chunk.Of(d_w_.view()),
            columns.chunk.Of(d_k_.view()), stream_);
      }
    }
  }

  Named<float> Results() const {
    HostTensor<float> lse =
        Poisoned({in_.size.batch, in_.size.num_heads, in_.size.seq_len});
    for (const Part& part : parts_) part.chunk.Put(part.lse, &lse);
    for (const HeadArray* array : {&kernel_x_, &g_, &d_w_, &d_k_, &d_beta_}) {
      EXPECT_TRUE(array->RestIsPoisoned());
    }
    EXPECT_TRUE(x_.RestIsPoisoned());
    EXPECT_TRUE(y_.RestIsPoisoned());
    return {{"x", x_.Values()},
            {"lse", FiniteLse(lse.values())},
            {"d_w", d_w_.Values()},
            {"d_k", d_k_.Values()},
            {"d_v", in_place_ ? g_.Values() : y_.Values()},
            {"d_beta", d_beta_.Values()}};
  }

 private:
  struct Part {
    Part(const DeltaInputs& in, const Chunk& c, Margins margins)
        : chunk(c),
          segments(c.Copy<int32_t>(in.mask.ForOp().segment_ids)),
          sums({in.size.batch, in.size.num_heads, c.length, in.size.head_dim},
               margins),
          lse(Poisoned(sums.row_max.shape())),
          delta(lse) {}

    Chunk chunk;
    HostTensor<int32_t> segments;
    OwnedRowSums sums;
    HostTensor<float> lse, delta;
  };

  int num_chunks() const { return static_cast<int>(parts_.size()); }
  DeltaChunk Factors(const Part& part) const {
    return {part.chunk.Of(in_.w.activation()),
            part.chunk.Of(in_.k.activation()),
            part.chunk.Of(in_.beta.activation()), ViewOrAbsent(part.segments),
            kScale};
  }
  HeadTensor KernelX(Part* part) {
    return in_place_ ? part->sums.weighted.view()
                     : part->chunk.Of(kernel_x_.view());
  }
  HeadTensor Y(const Part& part) {
    return part.chunk.Of(in_place_ ? g_.view() : y_.view());
  }

  // Y of a chunk whose later chunks are known, and what follows from it.
  void SolveAdjoint(int c) {
    Part& columns = parts_[static_cast<size_t>(c)];
    const HeadTensor g = columns.chunk.Of(g_.view());
    for (int other : InOrder(Range(c + 1, num_chunks()), order_)) {
      const Part& rows = parts_[static_cast<size_t>(other)];
      DeltaChunkAdjointUpdate(Factors(rows), rows.lse.view(), Y(rows),
                              Factors(columns), g, stream_);
    }
    DeltaChunkAdjointSolve(Factors(columns), columns.lse.view(), g, Y(columns),
                           stream_);
    DeltaChunkRowGradients(Factors(columns), Y(columns), KernelX(&columns),
                           columns.delta.view(),
                           columns.chunk.Of(d_beta_.view()), stream_);
  }

  const DeltaInputs& in_;
  ChunkOrder order_;
  bool in_place_;
  Stream stream_;
  std::vector<Part> parts_;
  SolutionArray x_;
  HeadArray kernel_x_, g_;
  SolutionArray y_;
  HeadArray d_w_, d_k_, d_beta_;
};

Named<float> RunChunked(const DeltaInputs& in,
                        const std::vector<int64_t>& lengths, ChunkOrder order,
                        const ChunkedForm& form = {}) {
  ChunkedDelta run(in, lengths, order, form);
  run.Forward();
  run.Backward();
  return run.Results();
}

class ChunkedDeltaSolve : public ::testing::TestWithParam<DeltaCase> {};

// The budget is that of the whole solve (delta_solve_test.cc).
TEST_P(ChunkedDeltaSolve, MatchesReferenceInEveryOrder) {
  const DeltaInputs in(GetParam());
  const auto plain = in.Reference<float>();
  const auto exact = in.Reference<double>();
  for (const ChunkOrder order :
       {ChunkOrder::kAscending, ChunkOrder::kDescending,
        ChunkOrder::kOddFirst}) {
    SCOPED_TRACE(static_cast<int>(order));
    ExpectWithinBudget(RunChunked(in, GetParam().lengths, order), plain, exact,
                       in.ScoreRoundings(), ProductRoundings());
  }
}

TEST_P(ChunkedDeltaSolve, TakesBFloat16OnAGpu) {
  if (!IsOnGpu()) GTEST_SKIP() << "skipped: fp32 alone on a CPU";
  const DeltaInputs in(GetParam(), Activations::kBFloat16);
  for (const Activations solutions :
       {Activations::kFloat32, Activations::kBFloat16}) {
    SCOPED_TRACE(static_cast<int>(solutions));
    // Scores of bf16 operands are as exact as those of fp32 ones.
    ExpectWithinBudget(
        RunChunked(in, GetParam().lengths, ChunkOrder::kOddFirst,
                   {/*in_place=*/false, Activations::kBFloat16, solutions}),
        in.Reference<float>(), in.Reference<double>(),
        /*score_roundings=*/1, ProductRoundings(Activations::kBFloat16));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ChunkedDeltaSolve,
    ::testing::Values(
        DeltaCase{"OneRowEach", {1, 2, 3, 5}, {1, 1, 1}},
        DeltaCase{"OneChunk", {1, 1, 70, 16}, {70}},
        DeltaCase{"TwoTiles", {1, 2, 128, 64}, {64, 64}},
        DeltaCase{"FourOdd", {2, 2, 132, 16}, {33, 33, 33, 33}},
        DeltaCase{"SixOdd", {1, 1, 210, 8}, {35, 35, 35, 35, 35, 35}},
        DeltaCase{"Unequal", {2, 1, 200, 16}, {100, 3, 65, 32}},
        DeltaCase{"Dim80", {1, 1, 140, 80}, {70, 70}},
        DeltaCase{"Dim128", {1, 1, 140, 128}, {70, 70}},
        DeltaCase{"Sharp", {1, 1, 150, 16}, {75, 75}, 3.0},
        DeltaCase{"BetaZero", {1, 1, 100, 16}, {50, 50}, 1.0, 0.0},
        DeltaCase{"Documents",
                  {2, 2, 240, 16},
                  {60, 60, 60, 60},
                  1.0,
                  0.7,
                  {1, 30, 200, 201}},
        DeltaCase{"DocumentsAtChunks",
                  {2, 1, 210, 8},
                  {70, 70, 70},
                  1.0,
                  0.7,
                  {70, 140}}));

// d_w and d_k are proportional to beta: v - x would leave nothing of them.
TEST(ChunkedDeltaSolve, GradientsKeepTheirDigitsForASmallBeta) {
  for (const double beta : {1e-3, 1e-6, 1e-9}) {
    const DeltaInputs in({"", {1, 2, 160, 16}, {}, 1.0, beta});
    const Named<float> got =
        RunChunked(in, {40, 40, 40, 40}, ChunkOrder::kAscending);
    const double budget =
        static_cast<double>(std::numeric_limits<float>::epsilon()) *
        (1 + in.ScoreRoundings()) * ProductRoundings();
    for (const auto& [name, want] : in.Reference<double>()) {
      EXPECT_TRUE(IsClose(ToDouble(got.at(name)), want, budget))
          << name << ", beta " << beta;
    }
  }
}

TEST(ChunkedDeltaSolve, WholeTilesSolveToTheBitsOfTheWholeSequence) {
  if (IsOnGpu()) GTEST_SKIP() << "skipped: a GPU has other kernels for it";
  const DeltaInputs in({"", {2, 2, 250, 16}, {}});
  ChunkedDelta chunked(in, {128, 64, 58}, ChunkOrder::kAscending);
  chunked.Forward();
  HeadArray x(in.size);
  HostTensor<float> lse = Poisoned({2, 2, 250});
  Stream stream;
  DeltaSolveForward(in.w.view(), in.k.view(), in.v.view(), in.beta.view(),
                    kScale, {}, SolvePrecision::kBFloat16x3, 0, x.view(),
                    lse.view(), stream);
  const Named<float> got = chunked.Results();
  EXPECT_EQ(got.at("x"), x.Values());
  EXPECT_EQ(got.at("lse"), FiniteLse(lse.values()));
}

TEST(ChunkedDeltaSolve, TwoRunsAndSharedMemoryGiveTheSameBits) {
  const DeltaInputs in({"", {2, 2, 150, 8}, {}, 1.0, 0.7, {10, 140}});
  const std::vector<int64_t> lengths = {50, 50, 50};
  const Named<float> once = RunChunked(in, lengths, ChunkOrder::kOddFirst);
  EXPECT_EQ(RunChunked(in, lengths, ChunkOrder::kOddFirst), once);
  EXPECT_EQ(RunChunked(in, lengths, ChunkOrder::kOddFirst, {/*in_place=*/true}),
            once);
}

// Values that nobody may look at are NaN.
TEST(ChunkedDeltaSolve, ChunksOfOtherDocumentsAreNotRead) {
  const HeadSize size = {1, 2, 50, 8};
  const HeadArray w(size, "w"), beta(BetaSize(size), "beta"), nan(size);
  const HostTensor<float> lse({1, 2, 50}, 0.0f);
  const HostTensor<int32_t> zeros({1, 50}, 0), ones({1, 50}, 1);
  const DeltaChunk rows = {w.view(), w.view(), beta.view(), ones.view(), 1};
  const DeltaChunk columns = {nan.view(), nan.view(), nan.view(), zeros.view(),
                              1};
  Stream stream;
  OwnedRowSums sums(size);
  BeginRowSums(sums.view(), stream);
  DeltaChunkUpdate(rows, columns, nan.view(), sums.view(), stream);
  EXPECT_EQ(sums.row_sum.values(), std::vector<double>(100, 0));
  EXPECT_EQ(sums.weighted.Values(), std::vector<float>(800, 0));

  HeadArray g(size, "g"), d_w = g, d_k = g;
  const std::vector<float> old = g.Values();
  DeltaChunkAdjointUpdate(rows, lse.view(), nan.view(), columns, g.view(),
                          stream);
  DeltaChunkScoreGradients(rows, {lse.view(), lse.view(), nan.view()}, columns,
                           nan.view(), /*diagonal=*/false, d_w.view(),
                           d_k.view(), stream);
  EXPECT_EQ(g.Values(), old);
  EXPECT_EQ(d_w.Values(), old);
  EXPECT_EQ(d_k.Values(), old);
}

}  // namespace
}  // namespace cubit
