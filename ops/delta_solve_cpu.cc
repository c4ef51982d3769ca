// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "ops/block_solve.h"
#include "ops/delta_solve.h"
#include "ops/reduction.h"
#include "ops/score_tile.h"
#include "ops/tile_sweep.h"
#include "runtime/check.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

void CheckInputs(const ConstHeadTensor& w, const ConstHeadTensor& k,
                 const ConstHeadTensor& v, const ConstHeadTensor& beta,
                 const AttentionMask& mask, const ConstHeadTensor& x,
                 const ConstTensor& lse) {
  CheckHeadShape(w, "w", w.batch, w.seq_len, w.num_heads, w.head_dim);
  CheckHeadShape(k, "k", w.batch, w.seq_len, w.num_heads, w.head_dim);
  CheckHeadShape(v, "v", w.batch, w.seq_len, w.num_heads, w.head_dim);
  CheckHeadShape(beta, "beta", w.batch, w.seq_len, w.num_heads, 1);
  CheckHeadShape(x, "x", w.batch, w.seq_len, w.num_heads, w.head_dim);
  CUBIT_CHECK_SHAPE(lse, {w.batch, w.num_heads, w.seq_len});
  CUBIT_CHECK(mask.causal) << "the Delta system is triangular";
}

struct ForwardArguments {
  ConstHeadTensor w, k, v, beta;
  float scale;
  int64_t first_row;
  HeadTensor x;
  Tensor lse;
};

void ForwardHead(const ForwardArguments& in, const AttentionMask& mask,
                 int64_t b, int64_t h) {
  const ConstHeadTensor& w = in.w;
  const int64_t num_rows = w.seq_len;
  const int64_t dim = w.head_dim;
  const VisibleKeys keys(mask, b, num_rows, num_rows, /*strict=*/true);
  ScoreHead head(num_rows, num_rows, dim);
  Floats solution(num_rows * dim);
  // The keys pass through the memory of the solution on their way.
  PackRows(in.k, b, h, 0, num_rows, 1.0f, solution.data());
  TransposeBlocks(solution.data(), num_rows, dim, head.key_blocks.data());
  PackRows(w, b, h, in.first_row, num_rows, in.scale, head.query_rows.data());
  PackRows(in.x, b, h, 0, in.first_row, 1.0f, solution.data());
  const auto equation = [&](int64_t row, float, double sum, float* rhs) {
    const float* value = in.v.row<float>(b, row, h);
    std::copy(value, value + dim, rhs);
    if (sum == 0) return 0.0f;  // the first row of a document: X = V
    return static_cast<float>(in.beta.row<float>(b, row, h)[0] / sum);
  };
  float* lse = in.lse.data<float>() + (b * w.num_heads + h) * num_rows;
  SolveHead(head, keys, /*shift=*/nullptr, in.first_row, equation,
            solution.data(), lse);
  UnpackRows(solution.data(), b, h, in.first_row, num_rows,
             /*accumulate=*/false, in.x);
}

struct BackwardArguments {
  ConstHeadTensor w, k, v, beta;
  float scale;
  ConstHeadTensor x;
  ConstTensor lse;
  ConstHeadTensor d_x;
  HeadTensor d_w, d_k, d_v, d_beta;
};

void PackSweep(const BackwardArguments& in, int64_t b, int64_t h,
               GradientSweep* sweep) {
  const int64_t num_rows = in.w.seq_len;
  const int64_t dim = in.w.head_dim;
  // The solution passes through the memory of the keys on its way.
  PackRows(in.x, b, h, 0, num_rows, 1.0f, sweep->key_rows.data());
  TransposeBlocks(sweep->key_rows.data(), num_rows, dim,
                  sweep->value_blocks.data());
  PackRows(in.k, b, h, 0, num_rows, 1.0f, sweep->key_rows.data());
  TransposeBlocks(sweep->key_rows.data(), num_rows, dim,
                  sweep->head.key_blocks.data());
  PackRows(in.w, b, h, 0, num_rows, in.scale, sweep->head.query_rows.data());
  const float* lse = in.lse.data<float>() + (b * in.w.num_heads + h) * num_rows;
  std::copy(lse, lse + num_rows, sweep->lse.data());
  for (int64_t i = 0; i < num_rows; ++i) {
    *sweep->factors.at(i) = in.beta.row<float>(b, i, h)[0];
  }
}

void BackwardHead(const BackwardArguments& in, const AttentionMask& mask,
                  int64_t b, int64_t h) {
  const int64_t num_rows = in.w.seq_len;
  const int64_t dim = in.w.head_dim;
  const VisibleKeys keys(mask, b, num_rows, num_rows, /*strict=*/true);
  GradientSweep sweep(num_rows, num_rows, dim, GradientSweep::Rows::kFactored);
  PackSweep(in, b, h, &sweep);
  Floats y(num_rows * dim);
  PackRows(in.d_x, b, h, 0, num_rows, 1.0f, y.data());

  const auto row_factor = [&](int64_t row, float) {
    return *sweep.factors.at(row);
  };
  // L^T Y = d_x, L = I + diag(beta) W: d L_ij = -Y_i . X_j, and
  // beta_i (W X)_i = V_i - X_i gives delta_i = -Y_i . (V_i - X_i).
  const auto solved = [&](int64_t row, float, const float* y_row) {
    const float* v = in.v.row<float>(b, row, h);
    const float* x = in.x.row<float>(b, row, h);
    const float beta = *sweep.factors.at(row);
    float* g = sweep.d_out.at(row * dim);
    float* factored = sweep.factored_d_out.at(row * dim);
    for (int64_t c = 0; c < dim; ++c) g[c] = -y_row[c];
    for (int64_t c = 0; c < dim; ++c) factored[c] = beta * g[c];
    *sweep.delta.at(row) = static_cast<float>(FixedOrderSum(
        dim, [g, v, x](int64_t c) { return g[c] * (v[c] - x[c]); }));
  };
  SolveHeadAdjoint(keys, {row_factor, solved}, &sweep, y.data());

  float* d_queries = sweep.d_query_rows.data();
  for (int64_t c = 0; c < num_rows * dim; ++c) d_queries[c] *= in.scale;
  UnpackRows(d_queries, b, h, 0, num_rows, /*accumulate=*/false, in.d_w);
  UnpackRows(sweep.d_key_rows.data(), b, h, 0, num_rows, false, in.d_k);
  UnpackRows(y.data(), b, h, 0, num_rows, false, in.d_v);
  for (int64_t i = 0; i < num_rows; ++i) {
    in.d_beta.row<float>(b, i, h)[0] =
        static_cast<float>(sweep.row_products[static_cast<size_t>(i)]);
  }
}

}  // namespace

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void DeltaSolveForward(ConstHeadTensor w, ConstHeadTensor k, ConstHeadTensor v,
                       ConstHeadTensor beta, float scale,
                       const AttentionMask& mask, SolvePrecision /*precision*/,
                       int64_t first_row, HeadTensor x, Tensor lse,
                       Stream& /*stream*/) {
  CheckInputs(w, k, v, beta, mask, x, lse);
  CUBIT_CHECK(first_row >= 0 && first_row <= w.seq_len) << first_row;
  const ForwardArguments in = {w, k, v, beta, scale, first_row, x, lse};
  ParallelFor(w.batch * w.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ForwardHead(in, mask, i / w.num_heads, i % w.num_heads);
    }
  });
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void DeltaSolveBackward(ConstHeadTensor w, ConstHeadTensor k, ConstHeadTensor v,
                        ConstHeadTensor beta, float scale,
                        const AttentionMask& mask, SolvePrecision /*precision*/,
                        ConstHeadTensor x, ConstTensor lse, ConstHeadTensor d_x,
                        HeadTensor /*y*/, HeadTensor d_w, HeadTensor d_k,
                        HeadTensor d_v, HeadTensor d_beta, Stream& /*stream*/) {
  CheckInputs(w, k, v, beta, mask, x, lse);
  const auto check = [&w](const ConstHeadTensor& y, const char* name) {
    CheckHeadShape(y, name, w.batch, w.seq_len, w.num_heads, w.head_dim);
  };
  check(d_x, "d_x"), check(d_w, "d_w"), check(d_k, "d_k"), check(d_v, "d_v");
  CheckHeadShape(d_beta, "d_beta", w.batch, w.seq_len, w.num_heads, 1);
  const BackwardArguments in = {w,   k,   v,   beta, scale, x,
                                lse, d_x, d_w, d_k,  d_v,   d_beta};
  ParallelFor(w.batch * w.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      BackwardHead(in, mask, i / w.num_heads, i % w.num_heads);
    }
  });
}

}  // namespace cubit
