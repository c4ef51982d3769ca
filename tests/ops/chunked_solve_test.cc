// SPDX-License-Identifier: Apache-2.0
//
// KRR by chunks; chunked_delta_test.cc has Delta.

#include "ops/chunked_solve.h"

#include <algorithm>
#include <cmath>
#include <ostream>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "tests/ops/chunked_case.h"
#include "tests/ops/head_array.h"
#include "tests/ops/krr_case.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::ActivationArray;
using ::cubit::testing::Activations;
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
using ::cubit::testing::IsOnGpu;
using ::cubit::testing::KrrCase;
using ::cubit::testing::Margins;
using ::cubit::testing::Named;
using ::cubit::testing::OwnedRowSums;
using ::cubit::testing::Poisoned;
using ::cubit::testing::ProductRoundings;
using ::cubit::testing::Range;
using ::cubit::testing::SolutionArray;
using ::cubit::testing::TestMask;
using ::cubit::testing::ViewOrAbsent;

// A KrrCase solved chunk by chunk, there and back. Outputs start as NaN.
class ChunkedKrr {
 public:
  // form.in_place: outputs share memory with inputs wherever the header says
  // that they may; solutions are fp32 then.
  ChunkedKrr(const KrrCase& krr, const std::vector<int64_t>& lengths,
             ChunkOrder order, const ChunkedForm& form = {})
      : krr_(krr),
        order_(order),
        in_place_(form.in_place),
        r_(krr.r, form.activations),
        v_(krr.v, form.activations),
        x_(krr.size, form.solutions),
        kernel_x_(krr.size, form.margins()),
        g_(krr.d_x.Between(form.margins())),
        y_(krr.size, form.solutions),
        d_queries_(HeadArray(krr.size, "zero", 0.0).Between(form.margins())),
        d_keys_(d_queries_),
        d_r_(krr.size),
        d_v_(krr.size),
        d_log_lambda_({krr.size.num_heads}, 0.0f) {
    for (const Chunk& chunk : Cut(lengths, krr.size.seq_len)) {
      parts_.emplace_back(krr, chunk, form.margins());
    }
  }

  void Forward() {
    for (int c = 0; c < num_chunks(); ++c) {
      Part& rows = parts_[static_cast<size_t>(c)];
      BeginKrrRows(Factors(rows), rows.sums.view(), stream_);
      for (int other : InOrder(Range(0, c), order_)) {
        const Part& columns = parts_[static_cast<size_t>(other)];
        KrrChunkUpdate(Factors(rows), Factors(columns),
                       columns.chunk.Of(std::as_const(x_).view()),
                       rows.sums.view(), stream_);
      }
      KrrChunkSolve(Factors(rows), RightSide(rows), rows.sums.view(),
                    rows.chunk.Of(x_.view()), rows.lse.view(), KernelX(&rows),
                    stream_);
    }
  }

  void Backward() {
    for (int c = num_chunks() - 1; c >= 0; --c) SolveAdjoint(c);
    for (int c : InOrder(Range(0, num_chunks()), order_)) {
      for (int other : InOrder(Range(0, c + 1), order_)) {
        AddScoreGradients(c, other);
      }
    }
    for (Part& part : parts_) {
      const HeadTensor d_queries = part.chunk.Of(d_queries_.view());
      KrrChunkFinish(Factors(part), part.row_sums.view(), d_queries,
                     part.chunk.Of(d_keys_.view()),
                     in_place_ ? d_queries : part.chunk.Of(d_r_.view()),
                     part.d_column_scale.view(), stream_);
    }
  }

  // The names of KrrCase::RunOp.
  Named<float> Results() const {
    HostTensor<float> lse = Poisoned(krr_.column_scale.shape());
    HostTensor<float> d_columns = lse, d_values = lse;
    for (const Part& part : parts_) {
      part.chunk.Put(part.lse, &lse);
      part.chunk.Put(part.d_column_scale, &d_columns);
      part.chunk.Put(part.d_value_scale, &d_values);
    }
    for (const HeadArray* array : {&kernel_x_, &g_, &d_r_, &d_v_}) {
      EXPECT_TRUE(array->RestIsPoisoned());
    }
    EXPECT_TRUE(x_.RestIsPoisoned());
    EXPECT_TRUE(y_.RestIsPoisoned());
    return {{"x", x_.Values()},
            {"lse", lse.values()},
            {"d_r", (in_place_ ? d_queries_ : d_r_).Values()},
            {"d_v", d_v_.Values()},
            {"d_column_scale", d_columns.values()},
            {"d_value_scale", d_values.values()},
            {"d_log_lambda", d_log_lambda_.values()}};
  }

 private:
  struct Part {
    Part(const KrrCase& krr, const Chunk& c, Margins margins)
        : chunk(c),
          column_scale(c.Copy<float>(krr.column_scale.view())),
          value_scale(c.Copy<float>(krr.value_scale.view())),
          segments(c.Copy<int32_t>(krr.mask.ForOp().segment_ids)),
          sums(
              {krr.size.batch, krr.size.num_heads, c.length, krr.size.head_dim},
              margins),
          lse(Poisoned(column_scale.shape())),
          delta(lse),
          d_value_scale(lse),
          d_column_scale(lse),
          row_sums(lse.shape(), 0.0) {}

    Chunk chunk;
    HostTensor<float> column_scale, value_scale;
    HostTensor<int32_t> segments;
    OwnedRowSums sums;
    HostTensor<float> lse, delta, d_value_scale, d_column_scale;
    HostTensor<double> row_sums;
  };

  int num_chunks() const { return static_cast<int>(parts_.size()); }
  KrrChunk Factors(const Part& part) const {
    return {part.chunk.Of(r_.activation()), part.column_scale.view(),
            ViewOrAbsent(part.segments)};
  }
  KrrRightSide RightSide(const Part& part) const {
    return {part.chunk.Of(v_.activation()), part.value_scale.view(),
            krr_.log_lambda.view()};
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
      KrrChunkAdjointUpdate(Factors(rows), rows.lse.view(), Y(rows),
                            Factors(columns), g, stream_);
    }
    KrrChunkAdjointSolve(Factors(columns), columns.lse.view(),
                         krr_.log_lambda.view(), g, Y(columns), stream_);
    const KrrRowGradients gradients = {
        columns.chunk.Of(d_v_.view()), columns.d_value_scale.view(),
        d_log_lambda_.view(), columns.delta.view()};
    KrrChunkRowGradients(RightSide(columns),
                         columns.chunk.Of(std::as_const(x_).view()),
                         KernelX(&columns), Y(columns), gradients, stream_);
  }

  void AddScoreGradients(int row_chunk, int column_chunk) {
    Part& rows = parts_[static_cast<size_t>(row_chunk)];
    const Part& columns = parts_[static_cast<size_t>(column_chunk)];
    const KrrScoreGradients gradients = {rows.chunk.Of(d_queries_.view()),
                                         columns.chunk.Of(d_keys_.view()),
                                         rows.row_sums.view()};
    KrrChunkScoreGradients(
        Factors(rows), {rows.lse.view(), rows.delta.view(), Y(rows)},
        Factors(columns), columns.chunk.Of(std::as_const(x_).view()),
        row_chunk == column_chunk, gradients, stream_);
  }

  const KrrCase& krr_;
  ChunkOrder order_;
  bool in_place_;
  ActivationArray r_, v_;
  Stream stream_;
  std::vector<Part> parts_;
  SolutionArray x_;
  HeadArray kernel_x_, g_;
  SolutionArray y_;
  HeadArray d_queries_, d_keys_, d_r_, d_v_;
  HostTensor<float> d_log_lambda_;
};

Named<float> RunChunked(const KrrCase& krr, const std::vector<int64_t>& lengths,
                        ChunkOrder order, const ChunkedForm& form = {}) {
  ChunkedKrr run(krr, lengths, order, form);
  run.Forward();
  run.Backward();
  return run.Results();
}

struct ChunkedCase {
  const char* name;
  HeadSize size;
  std::vector<int64_t> lengths;
  double r_stddev = 0.5;
  float first_scale = 1;  // of head 0; the others have 1
  // Of head 0 and of the others.
  float first_log_lambda = -23;
  float log_lambda = -23;
  std::vector<int64_t> documents = {};
};

void PrintTo(const ChunkedCase& c, std::ostream* out) { *out << c.name; }

KrrCase MakeKrr(const ChunkedCase& c) {
  HostTensor<int32_t> segments;
  if (!c.documents.empty()) {
    segments = Documents(c.size.batch, c.size.seq_len, c.documents);
  }
  KrrCase krr(c.size, c.r_stddev, 0, 1, c.log_lambda, TestMask(true, segments));
  krr.log_lambda[0] = c.first_log_lambda;
  for (int64_t b = 0; b < c.size.batch; ++b) {
    float* scale = krr.column_scale.values().data() +
                   b * c.size.num_heads * c.size.seq_len;
    for (int64_t t = 0; t < c.size.seq_len; ++t) scale[t] *= c.first_scale;
  }
  return krr;
}

class ChunkedKrrSolve : public ::testing::TestWithParam<ChunkedCase> {};

// The budget is that of the whole solve (krr_test.cc).
TEST_P(ChunkedKrrSolve, MatchesReferenceInEveryOrder) {
  const KrrCase krr = MakeKrr(GetParam());
  const auto plain = krr.RunReference<float>();
  const auto exact = krr.RunReference<double>();
  for (const ChunkOrder order :
       {ChunkOrder::kAscending, ChunkOrder::kDescending,
        ChunkOrder::kOddFirst}) {
    SCOPED_TRACE(static_cast<int>(order));
    ExpectWithinBudget(RunChunked(krr, GetParam().lengths, order), plain, exact,
                       krr.ScoreRoundings(), ProductRoundings());
  }
}

TEST_P(ChunkedKrrSolve, TakesBFloat16OnAGpu) {
  if (!IsOnGpu()) GTEST_SKIP() << "skipped: fp32 alone on a CPU";
  KrrCase krr = MakeKrr(GetParam());
  krr.r = ActivationArray(krr.r, Activations::kBFloat16);
  krr.v = ActivationArray(krr.v, Activations::kBFloat16);
  for (const Activations solutions :
       {Activations::kFloat32, Activations::kBFloat16}) {
    SCOPED_TRACE(static_cast<int>(solutions));
    // Scores of bf16 operands are as exact as those of fp32 ones.
    ExpectWithinBudget(
        RunChunked(krr, GetParam().lengths, ChunkOrder::kOddFirst,
                   {/*in_place=*/false, Activations::kBFloat16, solutions}),
        krr.RunReference<float>(), krr.RunReference<double>(),
        /*score_roundings=*/1, ProductRoundings(Activations::kBFloat16));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cuts, ChunkedKrrSolve,
    ::testing::Values(
        ChunkedCase{"OneRowEach", {1, 1, 4, 8}, {1, 1, 1, 1}},
        ChunkedCase{"OneChunk", {1, 2, 70, 16}, {70}},
        ChunkedCase{"TwoTiles", {1, 2, 128, 64}, {64, 64}},
        ChunkedCase{"FourOdd", {2, 2, 132, 16}, {33, 33, 33, 33}},
        ChunkedCase{"FourOverATile", {1, 2, 300, 8}, {75, 75, 75, 75}},
        ChunkedCase{"SixOdd", {1, 1, 210, 32}, {35, 35, 35, 35, 35, 35}},
        ChunkedCase{"Unequal", {2, 1, 200, 16}, {100, 3, 65, 32}},
        ChunkedCase{"Dim80", {1, 1, 140, 80}, {70, 70}},
        ChunkedCase{"Dim128", {1, 1, 140, 128}, {70, 70}},
        ChunkedCase{"BlocksAChunk", {1, 2, 400, 64}, {200, 200}}));

INSTANTIATE_TEST_SUITE_P(
    Kernels, ChunkedKrrSolve,
    ::testing::Values(
        ChunkedCase{"Sharp", {1, 1, 150, 16}, {75, 75}, 4.0},
        // Several heads: the error of one d_log_lambda, which cancels, is
        // chance.
        ChunkedCase{"Flat", {1, 6, 200, 32}, {50, 50, 50, 50}, 0.05},
        ChunkedCase{
            "ScaleZero", {1, 2, 100, 16}, {25, 25, 25, 25}, 0.5, 0, 1, -23},
        ChunkedCase{"NegativeScale",
                    {2, 2, 132, 16},
                    {33, 33, 33, 33},
                    0.2,
                    -1,
                    1,
                    -23},
        ChunkedCase{"LambdaOverOne",
                    {1, 2, 150, 16},
                    {25, 25, 25, 25, 25, 25},
                    0.5,
                    1,
                    3,
                    -2},
        ChunkedCase{"LargeLambda", {2, 1, 140, 16}, {70, 70}, 0.5, 1, 20},
        ChunkedCase{
            "NegativeScaleDim64", {1, 2, 300, 64}, {150, 150}, 0.2, -1, 1, -23},
        ChunkedCase{
            "LambdaOverOneDim64", {1, 2, 300, 64}, {150, 150}, 0.5, 1, 3, -2}));

INSTANTIATE_TEST_SUITE_P(Masks, ChunkedKrrSolve,
                         ::testing::Values(
                             // The second document begins in the first chunk
                             // and ends in the last.
                             ChunkedCase{"Documents",
                                         {2, 2, 240, 16},
                                         {60, 60, 60, 60},
                                         0.5,
                                         1,
                                         -23,
                                         -23,
                                         {1, 30, 200, 201}},
                             ChunkedCase{"DocumentsAtChunks",
                                         {2, 1, 210, 8},
                                         {70, 70, 70},
                                         0.5,
                                         1,
                                         -23,
                                         -23,
                                         {70, 140}},
                             ChunkedCase{"DocumentsDim64",
                                         {2, 1, 300, 64},
                                         {100, 100, 100},
                                         0.5,
                                         1,
                                         -23,
                                         -23,
                                         {30, 200, 201}},
                             ChunkedCase{"DocumentsNegativeScale",
                                         {1, 2, 150, 8},
                                         {50, 50, 50},
                                         0.3,
                                         -1,
                                         1,
                                         3,
                                         {20, 120}}));

// Chunks of whole tiles in the order of the sequence are the blocks of the
// whole solve.
TEST(ChunkedKrrSolve, WholeTilesSolveToTheBitsOfTheWholeSequence) {
  if (IsOnGpu()) GTEST_SKIP() << "skipped: a GPU has other kernels for it";
  for (const float scale : {1.0f, -1.0f}) {
    const KrrCase krr = MakeKrr({"", {2, 2, 250, 16}, {}, 0.3, scale, 1});
    ChunkedKrr chunked(krr, {128, 64, 58}, ChunkOrder::kAscending);
    chunked.Forward();
    const Named<float> got = chunked.Results();
    const Named<float> want = krr.RunOp();
    EXPECT_EQ(got.at("x"), want.at("x")) << scale;
    EXPECT_EQ(got.at("lse"), want.at("lse")) << scale;
  }
}

TEST(ChunkedKrrSolve, TwoRunsAndSharedMemoryGiveTheSameBits) {
  const KrrCase krr =
      MakeKrr({"", {2, 2, 150, 8}, {}, 0.5, 1, 3, -23, {10, 140}});
  const std::vector<int64_t> lengths = {50, 50, 50};
  const Named<float> once = RunChunked(krr, lengths, ChunkOrder::kOddFirst);
  EXPECT_EQ(RunChunked(krr, lengths, ChunkOrder::kOddFirst), once);
  EXPECT_EQ(
      RunChunked(krr, lengths, ChunkOrder::kOddFirst, {/*in_place=*/true}),
      once);
}

TEST(ChunkedKrrSolve, DValuesMayReplaceY) {
  const KrrCase krr = MakeKrr({"", {2, 2, 40, 8}, {}});
  const auto run = [&krr](HeadArray* y, HeadArray* d_v) {
    HostTensor<float> d_value_scale = Poisoned(krr.value_scale.shape());
    HostTensor<float> delta = d_value_scale, d_log_lambda({2}, 0.0f);
    Stream stream;
    KrrChunkRowGradients(
        {krr.v.view(), krr.value_scale.view(), krr.log_lambda.view()},
        krr.d_x.view(), {}, std::as_const(*y).view(),
        {d_v->view(), d_value_scale.view(), d_log_lambda.view(), delta.view()},
        stream);
    return d_v->Values();
  };
  HeadArray y(krr.size, "y"), d_v(krr.size);
  const std::vector<float> apart = run(&y, &d_v);
  EXPECT_EQ(run(&y, &y), apart);
}

// Values that nobody may look at are NaN.
TEST(ChunkedKrrSolve, ChunksOfOtherDocumentsAreNotRead) {
  const KrrCase krr = MakeKrr({"", {1, 2, 100, 8}, {}});
  const Chunk first = {0, 50}, second = {50, 50};
  const HostTensor<float> scale = first.Copy<float>(krr.column_scale.view());
  const HostTensor<int32_t> zeros({1, 50}, 0), ones({1, 50}, 1);
  const HeadSize size = {1, 2, 50, 8};
  const HeadArray nan(size);
  const KrrChunk rows = {second.Of(krr.r.view()), scale.view(), ones.view()};
  const KrrChunk columns = {nan.view(), scale.view(), zeros.view()};
  Stream stream;

  OwnedRowSums sums(size);
  BeginKrrRows(rows, sums.view(), stream);
  KrrChunkUpdate(rows, columns, nan.view(), sums.view(), stream);
  EXPECT_EQ(sums.row_sum.values(), std::vector<double>(100, 0));
  EXPECT_EQ(sums.weighted.Values(), std::vector<float>(800, 0));

  HeadArray g(size, "g"), d_queries(size, "zero", 0.0), d_keys = d_queries;
  const std::vector<float> old = g.Values();
  KrrChunkAdjointUpdate(rows, scale.view(), nan.view(), columns, g.view(),
                        stream);
  EXPECT_EQ(g.Values(), old);
  HostTensor<double> row_sums({1, 2, 50}, 0.0);
  KrrChunkScoreGradients(rows, {scale.view(), scale.view(), nan.view()},
                         columns, nan.view(), /*diagonal=*/false,
                         {d_queries.view(), d_keys.view(), row_sums.view()},
                         stream);
  EXPECT_EQ(d_queries.Values(), std::vector<float>(800, 0));
  EXPECT_EQ(d_keys.Values(), std::vector<float>(800, 0));
  EXPECT_EQ(row_sums.values(), std::vector<double>(100, 0));
}

TEST(ChunkedKrrSolveDeathTest, LambdaOverOneNeedsKernelX) {
  if (IsOnGpu()) {
    GTEST_SKIP() << "skipped: the kernel says so, and the GPU is lost with it";
  }
  const KrrCase krr = MakeKrr({"", {1, 1, 4, 8}, {}, 0.5, 1, 0.5});
  HeadArray d_v(krr.size);
  HostTensor<float> d_value_scale = Poisoned(krr.value_scale.shape());
  HostTensor<float> delta = d_value_scale, d_log_lambda({1}, 0.0f);
  Stream stream;
  EXPECT_DEATH(
      KrrChunkRowGradients(
          {krr.v.view(), krr.value_scale.view(), krr.log_lambda.view()},
          krr.d_x.view(), {}, krr.d_x.view(),
          {d_v.view(), d_value_scale.view(), d_log_lambda.view(), delta.view()},
          stream),
      "lambda is 1.6.* in head 0, kernel_x is absent");
}

}  // namespace
}  // namespace cubit
