// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "ops/block_solve.h"
#include "ops/chunked_attention_pair.h"
#include "ops/chunked_solve.h"
#include "ops/reduction.h"
#include "ops/score_tile.h"
#include "ops/tile_sweep.h"

namespace cubit {
namespace {

VisibleKeys KeysOf(const DeltaChunk& rows, const DeltaChunk& columns,
                   bool diagonal, int64_t b) {
  return KeysOfPair({diagonal, rows.segments, columns.segments}, b,
                    rows.w.seq_len, columns.k.seq_len, /*strict=*/true);
}

// Packs what the scores of head (b, h) need; `key_rows` [Tk, K] receives k_j.
void PackScores(const DeltaChunk& rows, const DeltaChunk& columns, int64_t b,
                int64_t h, ScoreHead* head, float* key_rows) {
  PackRows(rows.w, b, h, 0, rows.w.seq_len, rows.scale,
           head->query_rows.data());
  PackBlocks(columns.k, b, h, key_rows, head->key_blocks.data());
}

float BetaAt(const DeltaChunk& rows, int64_t b, int64_t i, int64_t h) {
  return rows.beta.row<float>(b, i, h)[0];
}

// target [Tc, K] = -beta_i y_i.
void PackFactoredRows(const DeltaChunk& rows, const ConstHeadTensor& y,
                      int64_t b, int64_t h, float* target) {
  for (int64_t i = 0; i < y.seq_len; ++i) {
    const float factor = -BetaAt(rows, b, i, h);
    const float* y_row = y.row<float>(b, i, h);
    float* row = target + i * y.head_dim;
    for (int64_t c = 0; c < y.head_dim; ++c) row[c] = factor * y_row[c];
  }
}

void CheckRows(const DeltaChunk& rows) {
  CheckLike(rows.w, "w", rows.w);
  CheckHeadShape(rows.beta, "beta", rows.w.batch, rows.w.seq_len,
                 rows.w.num_heads, 1);
}

void SolveChunkHead(const DeltaChunk& rows, const ConstHeadTensor& v,
                    const HeadSums& sums, const HeadTensor& x,
                    const HeadTensor& kernel_x, float* lse, int64_t b,
                    int64_t h) {
  const int64_t num_rows = rows.w.seq_len;
  const int64_t dim = rows.w.head_dim;
  const VisibleKeys keys = KeysOf(rows, rows, /*diagonal=*/true, b);
  ScoreHead head(num_rows, num_rows, dim);
  Floats solution(num_rows * dim);
  Floats averages(kernel_x.empty() ? 0 : num_rows * dim);
  // The keys pass through the memory of the solution on their way.
  PackScores(rows, rows, b, h, &head, solution.data());
  const auto start = [&](int64_t row, int64_t count, SoftmaxRows* block) {
    sums.Load(row, count, /*fixed_shift=*/false, block);
  };
  const auto equation = [&](int64_t row, float, double sum, float* rhs) {
    const float* value = v.row<float>(b, row, h);
    std::copy(value, value + dim, rhs);
    if (sum == 0) return 0.0f;  // the first row of a document: X = V
    return static_cast<float>(static_cast<double>(BetaAt(rows, b, row, h)) /
                              sum);
  };
  SolveRows(head, keys, start, /*first_row=*/0, equation, solution.data(), lse,
            kernel_x.empty() ? nullptr : averages.data());
  UnpackRows(solution.data(), b, h, 0, num_rows, /*accumulate=*/false, x);
  if (kernel_x.empty()) return;
  UnpackRows(averages.data(), b, h, 0, num_rows, false, kernel_x);
}

void ScoreGradientsOfHead(const DeltaChunk& rows, const AdjointRows& adjoint,
                          const DeltaChunk& columns,
                          const ConstHeadTensor& x_columns,
                          const VisibleKeys& keys, int64_t b, int64_t h,
                          GradientSweep* sweep) {
  const int64_t num_rows = rows.w.seq_len;
  // The solution passes through the memory of the keys on its way.
  PackBlocks(x_columns, b, h, sweep->key_rows.data(),
             sweep->value_blocks.data());
  PackScores(rows, columns, b, h, &sweep->head, sweep->key_rows.data());
  PackFactoredRows(rows, adjoint.y, b, h, sweep->d_out.data());
  const float* lse = HeadRow<float>(adjoint.lse, b, h);
  const float* delta = HeadRow<float>(adjoint.delta, b, h);
  std::copy(lse, lse + num_rows, sweep->lse.data());
  std::copy(delta, delta + num_rows, sweep->delta.data());
  SweepPair(keys, /*d_values=*/nullptr, sweep);
  float* d_queries = sweep->d_query_rows.data();
  for (int64_t c = 0; c < num_rows * rows.w.head_dim; ++c) {
    d_queries[c] *= rows.scale;
  }
}

}  // namespace

void DeltaChunkUpdate(const DeltaChunk& rows, const DeltaChunk& columns,
                      ConstHeadTensor x_columns, const RowSums& sums,
                      Stream& /*stream*/) {
  const ConstHeadTensor& w = rows.w;
  CheckLike(w, "w", w);
  CheckChunk(columns.k, "k", w);
  CheckLike(x_columns, "x_columns", columns.k);
  CheckRowSums(sums, w);
  ForEachHead(w.batch, w.num_heads, [&](int64_t b, int64_t h) {
    const int64_t num_columns = columns.k.seq_len;
    const VisibleKeys keys = KeysOf(rows, columns, /*diagonal=*/false, b);
    if (!AnyVisible(keys, w.seq_len, num_columns)) return;
    ScoreHead head(w.seq_len, num_columns, w.head_dim);
    Floats values(num_columns * w.head_dim);
    // The keys pass through the memory of the values on their way.
    PackScores(rows, columns, b, h, &head, values.data());
    PackRows(x_columns, b, h, 0, num_columns, 1.0f, values.data());
    AddKeys(head, keys, values.data(), /*fixed_shift=*/false,
            HeadSums(sums, b, h));
  });
}

void DeltaChunkSolve(const DeltaChunk& rows, ConstHeadTensor v,
                     const RowSums& sums, HeadTensor x, Tensor lse,
                     HeadTensor kernel_x, Stream& /*stream*/) {
  CheckRows(rows);
  CheckLike(rows.k, "k", rows.w);
  CheckLike(v, "v", rows.w);
  CheckRowSums(sums, rows.w);
  CheckLike(x, "x", rows.w);
  CheckPerToken(lse, "lse", rows.w);
  if (!kernel_x.empty()) CheckLike(kernel_x, "kernel_x", rows.w);
  ForEachHead(rows.w.batch, rows.w.num_heads, [&](int64_t b, int64_t h) {
    SolveChunkHead(rows, v, HeadSums(sums, b, h), x, kernel_x,
                   HeadRow<float>(lse, b, h), b, h);
  });
}

void DeltaChunkAdjointUpdate(const DeltaChunk& rows, ConstTensor lse_rows,
                             ConstHeadTensor y_rows, const DeltaChunk& columns,
                             HeadTensor g, Stream& /*stream*/) {
  const ConstHeadTensor& w = rows.w;
  CheckRows(rows);
  CheckPerToken(lse_rows, "lse_rows", w);
  CheckLike(y_rows, "y_rows", w);
  CheckChunk(columns.k, "k", w);
  CheckLike(g, "g", columns.k);
  ForEachHead(w.batch, w.num_heads, [&](int64_t b, int64_t h) {
    const int64_t num_columns = columns.k.seq_len;
    const VisibleKeys keys = KeysOf(rows, columns, /*diagonal=*/false, b);
    if (!AnyVisible(keys, w.seq_len, num_columns)) return;
    KeptSoftmax kernel(w.seq_len, num_columns, w.head_dim);
    Floats g_rows(num_columns * w.head_dim);
    // The keys pass through the memory of g on their way.
    PackScores(rows, columns, b, h, &kernel.head, g_rows.data());
    const float* lse = HeadRow<float>(lse_rows, b, h);
    std::copy(lse, lse + w.seq_len, kernel.lse.data());
    Floats factored(w.seq_len * w.head_dim);
    PackFactoredRows(rows, y_rows, b, h, factored.data());
    PackRows(g, b, h, 0, num_columns, 1.0f, g_rows.data());
    AddTransposedPair(kernel, keys, factored.data(), g_rows.data());
    UnpackRows(g_rows.data(), b, h, 0, num_columns, /*accumulate=*/false, g);
  });
}

void DeltaChunkAdjointSolve(const DeltaChunk& chunk, ConstTensor lse,
                            ConstHeadTensor g, HeadTensor y,
                            Stream& /*stream*/) {
  const ConstHeadTensor& w = chunk.w;
  CheckRows(chunk);
  CheckLike(chunk.k, "k", w);
  CheckPerToken(lse, "lse", w);
  CheckLike(g, "g", w);
  CheckLike(y, "y", w);
  ForEachHead(w.batch, w.num_heads, [&](int64_t b, int64_t h) {
    const VisibleKeys keys = KeysOf(chunk, chunk, /*diagonal=*/true, b);
    KeptSoftmax kernel(w.seq_len, w.seq_len, w.head_dim);
    Floats y_rows(w.seq_len * w.head_dim);
    // The keys pass through the memory of y on their way.
    PackScores(chunk, chunk, b, h, &kernel.head, y_rows.data());
    const float* lse_row = HeadRow<float>(lse, b, h);
    std::copy(lse_row, lse_row + w.seq_len, kernel.lse.data());
    PackRows(g, b, h, 0, w.seq_len, 1.0f, y_rows.data());
    const auto row_factor = [&](int64_t row, float) {
      return BetaAt(chunk, b, row, h);
    };
    Floats factored(w.seq_len * w.head_dim);
    const auto solved = [&](int64_t row, float, const float* y_row) {
      const float factor = -BetaAt(chunk, b, row, h);
      float* target = factored.at(row * w.head_dim);
      for (int64_t c = 0; c < w.head_dim; ++c) target[c] = factor * y_row[c];
    };
    SolveRowsAdjoint(
        kernel, keys, {row_factor, solved}, factored.data(),
        [](const TileRange&, const float*) {}, y_rows.data());
    UnpackRows(y_rows.data(), b, h, 0, w.seq_len, /*accumulate=*/false, y);
  });
}

void DeltaChunkRowGradients(const DeltaChunk& rows, ConstHeadTensor y,
                            ConstHeadTensor kernel_x, Tensor delta,
                            HeadTensor d_beta, Stream& /*stream*/) {
  CheckRows(rows);
  CheckLike(y, "y", rows.w);
  CheckLike(kernel_x, "kernel_x", rows.w);
  CheckPerToken(delta, "delta", rows.w);
  CheckHeadShape(d_beta, "d_beta", y.batch, y.seq_len, y.num_heads, 1);
  ForEachHead(y.batch, y.num_heads, [&](int64_t b, int64_t h) {
    float* delta_row = HeadRow<float>(delta, b, h);
    for (int64_t i = 0; i < y.seq_len; ++i) {
      const float* y_row = y.row<float>(b, i, h);
      const float* average = kernel_x.row<float>(b, i, h);
      const double product = FixedOrderSum(y.head_dim, [y_row,
                                                        average](int64_t c) {
        return static_cast<double>(y_row[c]) * static_cast<double>(average[c]);
      });
      const double beta = static_cast<double>(BetaAt(rows, b, i, h));
      d_beta.row<float>(b, i, h)[0] = static_cast<float>(-product);
      delta_row[i] = static_cast<float>(-beta * product);
    }
  });
}

void DeltaChunkScoreGradients(const DeltaChunk& rows,
                              const AdjointRows& adjoint,
                              const DeltaChunk& columns,
                              ConstHeadTensor x_columns, bool diagonal,
                              HeadTensor d_w, HeadTensor d_k,
                              Stream& /*stream*/) {
  const ConstHeadTensor& w = rows.w;
  CheckRows(rows);
  CheckPerToken(adjoint.lse, "lse", w);
  CheckPerToken(adjoint.delta, "delta", w);
  CheckLike(adjoint.y, "y", w);
  CheckChunk(columns.k, "k", w);
  CheckLike(x_columns, "x_columns", columns.k);
  CheckLike(d_w, "d_w", w);
  CheckLike(d_k, "d_k", columns.k);
  ForEachHead(w.batch, w.num_heads, [&](int64_t b, int64_t h) {
    const int64_t num_columns = columns.k.seq_len;
    const VisibleKeys keys = KeysOf(rows, columns, diagonal, b);
    if (!AnyVisible(keys, w.seq_len, num_columns)) return;
    GradientSweep sweep(w.seq_len, num_columns, w.head_dim,
                        GradientSweep::Rows::kPlain);
    ScoreGradientsOfHead(rows, adjoint, columns, x_columns, keys, b, h, &sweep);
    UnpackRows(sweep.d_query_rows.data(), b, h, 0, w.seq_len,
               /*accumulate=*/true, d_w);
    UnpackRows(sweep.d_key_rows.data(), b, h, 0, num_columns, true, d_k);
  });
}

}  // namespace cubit
