// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/block_solve.h"
#include "ops/chunked_attention_pair.h"
#include "ops/chunked_solve.h"
#include "ops/reduction.h"
#include "ops/score_tile.h"
#include "ops/tile_sweep.h"
#include "runtime/check.h"

namespace cubit {
namespace {

float Dot(const float* a, const float* b, int64_t dim) {
  return static_cast<float>(
      FixedOrderSum(dim, [a, b](int64_t c) { return a[c] * b[c]; }));
}

double DotInDouble(const float* a, const float* b, int64_t dim) {
  return FixedOrderSum(dim, [a, b](int64_t c) {
    return static_cast<double>(a[c]) * static_cast<double>(b[c]);
  });
}

double Lambda(const ConstTensor& log_lambda, int64_t h) {
  return std::exp(static_cast<double>(log_lambda.data<float>()[h]));
}

// key [K] = column_scale r: one row of the kernel's right factor.
void ScaleRow(const float* row, float column_scale, int64_t dim, float* key) {
  for (int64_t c = 0; c < dim; ++c) key[c] = column_scale * row[c];
}

// Whether S_ii is the largest score of every row of head (b, h), by
// Cauchy-Schwarz. The head's scale gives all chunks the same sign.
bool DiagonalIsMaximum(const KrrChunk& rows, int64_t b, int64_t h) {
  const float* scale = HeadRow<float>(rows.column_scale, b, h);
  return std::all_of(scale, scale + rows.r.seq_len,
                     [](float value) { return value > 0; });
}

// Packs what the scores of head (b, h) need; `key_rows` [Tk, K] receives
// column_scale_j r_j.
void PackScores(const KrrChunk& rows, const KrrChunk& columns, int64_t b,
                int64_t h, ScoreHead* head, float* key_rows) {
  const int64_t dim = rows.r.head_dim;
  const float* scale = HeadRow<float>(columns.column_scale, b, h);
  PackRows(rows.r, b, h, 0, rows.r.seq_len, 1.0f, head->query_rows.data());
  for (int64_t t = 0; t < columns.r.seq_len; ++t) {
    ScaleRow(columns.r.row<float>(b, t, h), scale[t], dim, key_rows + t * dim);
  }
  TransposeBlocks(key_rows, columns.r.seq_len, dim, head->key_blocks.data());
}

VisibleKeys KeysOf(const KrrChunk& rows, const KrrChunk& columns, bool diagonal,
                   int64_t b) {
  return KeysOfPair({diagonal, rows.segments, columns.segments}, b,
                    rows.r.seq_len, columns.r.seq_len, /*strict=*/false);
}

void CheckKrrChunk(const KrrChunk& chunk, const ConstHeadTensor& like) {
  CheckChunk(chunk.r, "r", like);
  CheckPerToken(chunk.column_scale, "column_scale", chunk.r);
}

void CheckRightSide(const KrrRightSide& right, const ConstHeadTensor& like) {
  CheckLike(right.v, "v", like);
  CheckPerToken(right.value_scale, "value_scale", like);
  CUBIT_CHECK_SHAPE(right.log_lambda, {like.num_heads});
}

struct SolveArguments {
  const KrrChunk& rows;
  const KrrRightSide& right;
  const RowSums& sums;
  HeadTensor x;
  Tensor lse;
  HeadTensor kernel_x;
};

void SolveChunkHead(const SolveArguments& in, int64_t b, int64_t h) {
  const int64_t num_rows = in.rows.r.seq_len;
  const int64_t dim = in.rows.r.head_dim;
  const VisibleKeys keys = KeysOf(in.rows, in.rows, /*diagonal=*/true, b);
  ScoreHead head(num_rows, num_rows, dim);
  Floats solution(num_rows * dim);
  Floats kernel_x(in.kernel_x.empty() ? 0 : num_rows * dim);
  // The keys pass through the memory of the solution on their way.
  PackScores(in.rows, in.rows, b, h, &head, solution.data());

  const HeadSums sums(in.sums, b, h);
  const bool fixed_shift = DiagonalIsMaximum(in.rows, b, h);
  const auto start = [&](int64_t row, int64_t rows, SoftmaxRows* block) {
    sums.Load(row, rows, fixed_shift, block);
  };
  const double lambda = Lambda(in.right.log_lambda, h);
  const float* value_scale = HeadRow<float>(in.right.value_scale, b, h);
  const auto equation = [&](int64_t row, float self_weight, double sum,
                            float* rhs) {
    const double g = 1.0 / (static_cast<double>(self_weight) + lambda * sum);
    const float factor =
        static_cast<float>(g * sum * static_cast<double>(value_scale[row]));
    ScaleRow(in.right.v.row<float>(b, row, h), factor, dim, rhs);
    return static_cast<float>(g);
  };
  SolveRows(head, keys, start, /*first_row=*/0, equation, solution.data(),
            HeadRow<float>(in.lse, b, h),
            in.kernel_x.empty() ? nullptr : kernel_x.data());
  UnpackRows(solution.data(), b, h, 0, num_rows, /*accumulate=*/false, in.x);
  if (in.kernel_x.empty()) return;
  UnpackRows(kernel_x.data(), b, h, 0, num_rows, false, in.kernel_x);
}

// Returns the head's d_log_lambda.
double RowGradientsOfHead(const KrrRightSide& right, const ConstHeadTensor& x,
                          const ConstHeadTensor& kernel_x,
                          const ConstHeadTensor& y,
                          const KrrRowGradients& gradients, int64_t b,
                          int64_t h) {
  const int64_t dim = y.head_dim;
  const double lambda = Lambda(right.log_lambda, h);
  const bool closed_form = lambda <= 1;
  CUBIT_CHECK(closed_form || !kernel_x.empty())
      << "lambda is " << lambda << " in head " << h << ", kernel_x is absent";
  const float* value_scale = HeadRow<float>(right.value_scale, b, h);
  float* d_value_scale = HeadRow<float>(gradients.d_value_scale, b, h);
  float* delta = HeadRow<float>(gradients.delta, b, h);
  double y_dot_x = 0;
  for (int64_t i = 0; i < y.seq_len; ++i) {
    const float* y_row = y.row<float>(b, i, h);
    const double y_dot_v = DotInDouble(y_row, right.v.row<float>(b, i, h), dim);
    const double product = DotInDouble(y_row, x.row<float>(b, i, h), dim);
    delta[i] =
        closed_form
            ? static_cast<float>(lambda * product -
                                 static_cast<double>(value_scale[i]) * y_dot_v)
            : -Dot(y_row, kernel_x.row<float>(b, i, h), dim);
    d_value_scale[i] = static_cast<float>(y_dot_v);
    y_dot_x += product;
    ScaleRow(y_row, value_scale[i], dim, gradients.d_v.row<float>(b, i, h));
  }
  return -lambda * y_dot_x;
}

void ScoreGradientsOfHead(const KrrChunk& rows, const AdjointRows& adjoint,
                          const KrrChunk& columns,
                          const ConstHeadTensor& x_columns,
                          const VisibleKeys& keys, int64_t b, int64_t h,
                          const KrrScoreGradients& gradients) {
  const int64_t num_rows = rows.r.seq_len;
  const int64_t num_columns = columns.r.seq_len;
  GradientSweep sweep(num_rows, num_columns, rows.r.head_dim,
                      GradientSweep::Rows::kSelfFromSum);
  sweep.own_keys = keys.own_keys();
  // The solution passes through the memory of the keys on its way.
  PackBlocks(x_columns, b, h, sweep.key_rows.data(), sweep.value_blocks.data());
  PackScores(rows, columns, b, h, &sweep.head, sweep.key_rows.data());
  PackRows(adjoint.y, b, h, 0, num_rows, -1.0f, sweep.d_out.data());
  const float* lse = HeadRow<float>(adjoint.lse, b, h);
  const float* delta = HeadRow<float>(adjoint.delta, b, h);
  std::copy(lse, lse + num_rows, sweep.lse.data());
  std::copy(delta, delta + num_rows, sweep.delta.data());
  SweepPair(keys, /*d_values=*/nullptr, &sweep);
  UnpackRows(sweep.d_query_rows.data(), b, h, 0, num_rows, /*accumulate=*/true,
             gradients.d_queries);
  UnpackRows(sweep.d_key_rows.data(), b, h, 0, num_columns, true,
             gradients.d_keys);
  double* row_sums = HeadRow<double>(gradients.row_sums, b, h);
  for (int64_t i = 0; i < num_rows; ++i) {
    row_sums[i] += sweep.row_sums[static_cast<size_t>(i)];
  }
}

}  // namespace

void BeginKrrRows(const KrrChunk& rows, const RowSums& sums,
                  Stream& /*stream*/) {
  const ConstHeadTensor& r = rows.r;
  CheckKrrChunk(rows, r);
  CheckRowSums(sums, r);
  ForEachHead(r.batch, r.num_heads, [&](int64_t b, int64_t h) {
    const bool fixed_shift = DiagonalIsMaximum(rows, b, h);
    const float* scale = HeadRow<float>(rows.column_scale, b, h);
    Floats key(r.head_dim);
    HeadSums(sums, b, h).Begin([&](int64_t i) {
      if (!fixed_shift) return -std::numeric_limits<float>::infinity();
      const float* row = r.row<float>(b, i, h);
      ScaleRow(row, scale[i], r.head_dim, key.data());
      return Dot(row, key.data(), r.head_dim);
    });
  });
}

void KrrChunkUpdate(const KrrChunk& rows, const KrrChunk& columns,
                    ConstHeadTensor x_columns, const RowSums& sums,
                    Stream& /*stream*/) {
  const ConstHeadTensor& r = rows.r;
  CheckKrrChunk(rows, r);
  CheckKrrChunk(columns, r);
  CheckLike(x_columns, "x_columns", columns.r);
  CheckRowSums(sums, r);
  ForEachHead(r.batch, r.num_heads, [&](int64_t b, int64_t h) {
    const int64_t num_columns = columns.r.seq_len;
    const VisibleKeys keys = KeysOf(rows, columns, /*diagonal=*/false, b);
    if (!AnyVisible(keys, r.seq_len, num_columns)) return;
    ScoreHead head(r.seq_len, num_columns, r.head_dim);
    Floats values(num_columns * r.head_dim);
    // The keys pass through the memory of the values on their way.
    PackScores(rows, columns, b, h, &head, values.data());
    PackRows(x_columns, b, h, 0, num_columns, 1.0f, values.data());
    AddKeys(head, keys, values.data(), DiagonalIsMaximum(rows, b, h),
            HeadSums(sums, b, h));
  });
}

void KrrChunkSolve(const KrrChunk& rows, const KrrRightSide& right,
                   const RowSums& sums, HeadTensor x, Tensor lse,
                   HeadTensor kernel_x, Stream& /*stream*/) {
  CheckKrrChunk(rows, rows.r);
  CheckRightSide(right, rows.r);
  CheckRowSums(sums, rows.r);
  CheckLike(x, "x", rows.r);
  CheckPerToken(lse, "lse", rows.r);
  if (!kernel_x.empty()) CheckLike(kernel_x, "kernel_x", rows.r);
  const SolveArguments in = {rows, right, sums, x, lse, kernel_x};
  ForEachHead(rows.r.batch, rows.r.num_heads,
              [&](int64_t b, int64_t h) { SolveChunkHead(in, b, h); });
}

void KrrChunkAdjointUpdate(const KrrChunk& rows, ConstTensor lse_rows,
                           ConstHeadTensor y_rows, const KrrChunk& columns,
                           HeadTensor g, Stream& /*stream*/) {
  const ConstHeadTensor& r = rows.r;
  CheckKrrChunk(rows, r);
  CheckPerToken(lse_rows, "lse_rows", r);
  CheckLike(y_rows, "y_rows", r);
  CheckKrrChunk(columns, r);
  CheckLike(g, "g", columns.r);
  ForEachHead(r.batch, r.num_heads, [&](int64_t b, int64_t h) {
    const int64_t num_columns = columns.r.seq_len;
    const VisibleKeys keys = KeysOf(rows, columns, /*diagonal=*/false, b);
    if (!AnyVisible(keys, r.seq_len, num_columns)) return;
    KeptSoftmax kernel(r.seq_len, num_columns, r.head_dim);
    Floats g_rows(num_columns * r.head_dim);
    // The keys pass through the memory of g on their way.
    PackScores(rows, columns, b, h, &kernel.head, g_rows.data());
    const float* lse = HeadRow<float>(lse_rows, b, h);
    std::copy(lse, lse + r.seq_len, kernel.lse.data());
    Floats minus_y(r.seq_len * r.head_dim);
    PackRows(y_rows, b, h, 0, r.seq_len, -1.0f, minus_y.data());
    PackRows(g, b, h, 0, num_columns, 1.0f, g_rows.data());
    AddTransposedPair(kernel, keys, minus_y.data(), g_rows.data());
    UnpackRows(g_rows.data(), b, h, 0, num_columns, /*accumulate=*/false, g);
  });
}

void KrrChunkAdjointSolve(const KrrChunk& chunk, ConstTensor lse,
                          ConstTensor log_lambda, ConstHeadTensor g,
                          HeadTensor y, Stream& /*stream*/) {
  const ConstHeadTensor& r = chunk.r;
  CheckKrrChunk(chunk, r);
  CheckPerToken(lse, "lse", r);
  CUBIT_CHECK_SHAPE(log_lambda, {r.num_heads});
  CheckLike(g, "g", r);
  CheckLike(y, "y", r);
  ForEachHead(r.batch, r.num_heads, [&](int64_t b, int64_t h) {
    const int64_t size = r.seq_len * r.head_dim;
    const VisibleKeys keys = KeysOf(chunk, chunk, /*diagonal=*/true, b);
    KeptSoftmax kernel(r.seq_len, r.seq_len, r.head_dim);
    Floats u(size);
    // The keys pass through the memory of u on their way.
    PackScores(chunk, chunk, b, h, &kernel.head, u.data());
    const float* lse_row = HeadRow<float>(lse, b, h);
    std::copy(lse_row, lse_row + r.seq_len, kernel.lse.data());
    PackRows(g, b, h, 0, r.seq_len, 1.0f, u.data());
    // U_i = (P_ii + lambda) Y_i, as in krr_cpu.cc.
    const double lambda = Lambda(log_lambda, h);
    const auto row_factor = [lambda](int64_t, float self_weight) {
      return static_cast<float>(1.0 /
                                (static_cast<double>(self_weight) + lambda));
    };
    Floats minus_y(size);
    const auto solved = [&](int64_t row, float self_weight, const float* u_i) {
      ScaleRow(u_i, -row_factor(row, self_weight), r.head_dim,
               minus_y.at(row * r.head_dim));
    };
    SolveRowsAdjoint(
        kernel, keys, {row_factor, solved}, minus_y.data(),
        [](const TileRange&, const float*) {}, u.data());
    for (int64_t c = 0; c < size; ++c) *u.at(c) = -*minus_y.at(c);
    UnpackRows(u.data(), b, h, 0, r.seq_len, /*accumulate=*/false, y);
  });
}

void KrrChunkRowGradients(const KrrRightSide& right, ConstHeadTensor x,
                          ConstHeadTensor kernel_x, ConstHeadTensor y,
                          const KrrRowGradients& gradients,
                          Stream& /*stream*/) {
  CheckLike(y, "y", y);
  CheckRightSide(right, y);
  CheckLike(x, "x", y);
  if (!kernel_x.empty()) CheckLike(kernel_x, "kernel_x", y);
  CheckLike(gradients.d_v, "d_v", y);
  CheckPerToken(gradients.d_value_scale, "d_value_scale", y);
  CUBIT_CHECK_SHAPE(gradients.d_log_lambda, {y.num_heads});
  CheckPerToken(gradients.delta, "delta", y);
  std::vector<double> partials(static_cast<size_t>(y.batch * y.num_heads));
  ForEachHead(y.batch, y.num_heads, [&](int64_t b, int64_t h) {
    partials[static_cast<size_t>(b * y.num_heads + h)] =
        RowGradientsOfHead(right, x, kernel_x, y, gradients, b, h);
  });
  float* d_log_lambda = gradients.d_log_lambda.data<float>();
  for (int64_t h = 0; h < y.num_heads; ++h) {
    double sum = 0;
    for (int64_t b = 0; b < y.batch; ++b) {
      sum += partials[static_cast<size_t>(b * y.num_heads + h)];
    }
    d_log_lambda[h] += static_cast<float>(sum);
  }
}

void KrrChunkScoreGradients(const KrrChunk& rows, const AdjointRows& adjoint,
                            const KrrChunk& columns, ConstHeadTensor x_columns,
                            bool diagonal, const KrrScoreGradients& gradients,
                            Stream& /*stream*/) {
  const ConstHeadTensor& r = rows.r;
  CheckKrrChunk(rows, r);
  CheckPerToken(adjoint.lse, "lse", r);
  CheckPerToken(adjoint.delta, "delta", r);
  CheckLike(adjoint.y, "y", r);
  CheckKrrChunk(columns, r);
  CheckLike(x_columns, "x_columns", columns.r);
  CheckLike(gradients.d_queries, "d_queries", r);
  CheckLike(gradients.d_keys, "d_keys", columns.r);
  CheckPerToken(gradients.row_sums, "row_sums", r);
  ForEachHead(r.batch, r.num_heads, [&](int64_t b, int64_t h) {
    const VisibleKeys keys = KeysOf(rows, columns, diagonal, b);
    if (!AnyVisible(keys, r.seq_len, columns.r.seq_len)) return;
    ScoreGradientsOfHead(rows, adjoint, columns, x_columns, keys, b, h,
                         gradients);
  });
}

void KrrChunkFinish(const KrrChunk& chunk, ConstTensor row_sums,
                    ConstHeadTensor d_queries, ConstHeadTensor d_keys,
                    HeadTensor d_r, Tensor d_column_scale, Stream& /*stream*/) {
  const ConstHeadTensor& r = chunk.r;
  CheckKrrChunk(chunk, r);
  CheckPerToken(row_sums, "row_sums", r);
  CheckLike(d_queries, "d_queries", r);
  CheckLike(d_keys, "d_keys", r);
  CheckLike(d_r, "d_r", r);
  CheckPerToken(d_column_scale, "d_column_scale", r);
  ForEachHead(r.batch, r.num_heads, [&](int64_t b, int64_t h) {
    const double* sums = HeadRow<double>(row_sums, b, h);
    const float* scale = HeadRow<float>(chunk.column_scale, b, h);
    float* d_scale = HeadRow<float>(d_column_scale, b, h);
    Floats key(r.head_dim);
    Floats d_key(r.head_dim);
    for (int64_t i = 0; i < r.seq_len; ++i) {
      const float d_self = static_cast<float>(-sums[i]);
      const float* row = r.row<float>(b, i, h);
      const float* d_query = d_queries.row<float>(b, i, h);
      const float* d_other = d_keys.row<float>(b, i, h);
      float* d_row = d_r.row<float>(b, i, h);
      ScaleRow(row, scale[i], r.head_dim, key.data());
      for (int64_t c = 0; c < r.head_dim; ++c) {
        *d_key.at(c) = d_other[c] + d_self * row[c];
        d_row[c] = d_query[c] + d_self * *key.at(c) + scale[i] * *d_key.at(c);
      }
      d_scale[i] = Dot(row, d_key.data(), r.head_dim);
    }
  });
}

}  // namespace cubit
