// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/blas.h"
#include "ops/block_solve.h"
#include "ops/heads.h"
#include "ops/krr.h"
#include "ops/krr_dense.h"
#include "ops/reduction.h"
#include "ops/rotary.h"
#include "ops/score_tile.h"
#include "ops/tile_sweep.h"
#include "runtime/check.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

float Dot(const float* a, const float* b, int64_t dim) {
  return static_cast<float>(
      FixedOrderSum(dim, [a, b](int64_t c) { return a[c] * b[c]; }));
}

// Packs what the scores of head (b, h) need; `key_rows` [T, K] receives
// r_j column_scale_j.
void PackHead(const ConstHeadTensor& r, const float* column_scale, int64_t b,
              int64_t h, ScoreHead* head, float* key_rows) {
  PackRows(r, b, h, 0, r.seq_len, 1.0f, head->query_rows.data());
  for (int64_t t = 0; t < r.seq_len; ++t) {
    const float* row = head->query_rows.at(t * r.head_dim);
    float* key = key_rows + t * r.head_dim;
    for (int64_t c = 0; c < r.head_dim; ++c) key[c] = column_scale[t] * row[c];
  }
  TransposeBlocks(key_rows, r.seq_len, r.head_dim, head->key_blocks.data());
}

// Arguments of the forward for one head: vectors [T] of that head, views of all
// heads.
struct ForwardArguments {
  ConstHeadTensor r, v;
  const float* column_scale;
  const float* value_scale;
  double lambda;
  int64_t first_row;
  HeadTensor x;
  float* lse;
};

void ForwardHead(const ForwardArguments& in, const AttentionMask& mask,
                 int64_t b, int64_t h) {
  const ConstHeadTensor& r = in.r;
  const int64_t num_rows = r.seq_len;
  const int64_t dim = r.head_dim;
  const VisibleKeys keys(mask, b, num_rows, num_rows, /*strict=*/false);
  ScoreHead head(num_rows, num_rows, dim);
  Floats solution(num_rows * dim);
  // The keys pass through the memory of the solution on their way.
  PackHead(r, in.column_scale, b, h, &head, solution.data());

  // Cauchy-Schwarz makes S_ii the row's maximum, if the scale is positive.
  const bool diagonal_is_maximum =
      std::all_of(in.column_scale, in.column_scale + num_rows,
                  [](float scale) { return scale > 0; });
  Floats shift(num_rows);
  for (int64_t i = 0; i < num_rows; ++i) {
    *shift.at(i) = Dot(head.query_rows.at(i * dim), solution.at(i * dim), dim);
  }
  PackRows(in.x, b, h, 0, in.first_row, 1.0f, solution.data());
  const auto equation = [&](int64_t row, float self_weight, double sum,
                            float* rhs) {
    const double g = 1.0 / (static_cast<double>(self_weight) + in.lambda * sum);
    const float factor =
        static_cast<float>(g * sum * static_cast<double>(in.value_scale[row]));
    const float* value = in.v.row<float>(b, row, h);
    for (int64_t c = 0; c < dim; ++c) rhs[c] = factor * value[c];
    return static_cast<float>(g);
  };
  SolveHead(head, keys, diagonal_is_maximum ? shift.data() : nullptr,
            in.first_row, equation, solution.data(), in.lse);
  UnpackRows(solution.data(), b, h, in.first_row, num_rows,
             /*accumulate=*/false, in.x);
}

// Gradients of head (b, h) with respect to r and column_scale, from those of
// the queries r_i and of the keys column_scale_j r_j.
void UnpackScoreGradients(const KrrHeadBackward& in, int64_t b, int64_t h,
                          const GradientSweep& sweep) {
  const int64_t dim = in.r.head_dim;
  for (int64_t i = 0; i < in.r.seq_len; ++i) {
    const float* d_query = sweep.d_query_rows.at(i * dim);
    const float* d_key = sweep.d_key_rows.at(i * dim);
    const float* row = sweep.head.query_rows.at(i * dim);
    float* d_r = in.d_r.row<float>(b, i, h);
    for (int64_t c = 0; c < dim; ++c) {
      d_r[c] = d_query[c] + in.column_scale[i] * d_key[c];
    }
    in.d_column_scale[i] = Dot(row, d_key, dim);
  }
}

// The way back through column_scale = scale / |r| of head (b, h): completes d_r
// and leaves the tokens' shares of d_scale in d_column_scale.
void GoThroughNorm(const KrrHeadBackward& in, int64_t b, int64_t h) {
  const int64_t dim = in.r.head_dim;
  for (int64_t i = 0; i < in.r.seq_len; ++i) {
    const float* row = in.r.row<float>(b, i, h);
    const double square = FixedOrderSum(dim,
                                        [row](int64_t c) {
                                          return static_cast<double>(row[c]) *
                                                 static_cast<double>(row[c]);
                                        }) +
                          kKrrNormEpsilon;
    const double d_column = in.d_column_scale[i];
    const float factor = static_cast<float>(
        -d_column * static_cast<double>(in.column_scale[i]) / square);
    float* d_r = in.d_r.row<float>(b, i, h);
    for (int64_t c = 0; c < dim; ++c) d_r[c] += factor * row[c];
    in.d_column_scale[i] = static_cast<float>(d_column / std::sqrt(square));
  }
}

// p_x [T, K] = P X of head (b, h); the sweep holds P's factors and lse.
void MultiplyKernel(const ConstHeadTensor& x, const VisibleKeys& keys,
                    int64_t b, int64_t h, const GradientSweep& sweep,
                    Floats* p_x) {
  const int64_t num_rows = x.seq_len;
  const int64_t dim = x.head_dim;
  Floats x_rows(num_rows * dim);
  PackRows(x, b, h, 0, num_rows, 1.0f, x_rows.data());
  std::fill(p_x->data(), p_x->at(num_rows * dim), 0.0f);
  Floats weights(kTile * kTile);
  for (int64_t row = 0; row < num_rows; row += kTile) {
    for (int64_t column = 0; column <= row; column += kTile) {
      const TileRange tile = {row, std::min(kTile, num_rows - row), column,
                              std::min(kTile, num_rows - column)};
      if (!keys.Touches(tile)) continue;
      sweep.Weights(keys, tile, weights.data());
      Sgemm(false, false, tile.rows, dim, tile.columns, 1.0f, weights.data(),
            kTile, x_rows.at(column * dim), dim, 1.0f, p_x->at(row * dim), dim);
    }
  }
}

// Returns the head's d_log_lambda.
double BackwardHead(const KrrHeadBackward& in, const AttentionMask& mask,
                    int64_t b, int64_t h) {
  const int64_t num_rows = in.r.seq_len;
  const int64_t dim = in.r.head_dim;
  const VisibleKeys keys(mask, b, num_rows, num_rows, /*strict=*/false);
  GradientSweep sweep(num_rows, num_rows, dim,
                      GradientSweep::Rows::kSelfFromSum);
  // The solution passes through the memory of the keys on its way.
  PackRows(in.x, b, h, 0, num_rows, 1.0f, sweep.key_rows.data());
  TransposeBlocks(sweep.key_rows.data(), num_rows, dim,
                  sweep.value_blocks.data());
  PackHead(in.r, in.column_scale, b, h, &sweep.head, sweep.key_rows.data());
  std::copy(in.lse, in.lse + num_rows, sweep.lse.data());
  Floats u(num_rows * dim);
  PackRows(in.d_x, b, h, 0, num_rows, 1.0f, u.data());

  const bool closed_form = in.lambda <= 1;
  Floats p_x(closed_form ? 0 : num_rows * dim);
  if (!closed_form) MultiplyKernel(in.x, keys, b, h, sweep, &p_x);

  const auto row_factor = [&](int64_t, float self_weight) {
    return static_cast<float>(1.0 /
                              (static_cast<double>(self_weight) + in.lambda));
  };
  // L^T Y = d_x with U_i = (P_ii + lambda) Y_i. Then d_v_i = value_scale_i Y_i,
  // d L_ij = -Y_i . X_j, and (P X)_i = value_scale_i V_i - lambda X_i gives
  // delta_i = -Y_i . (value_scale_i V_i - lambda X_i). For a large lambda that
  // difference has no correct digit, and P X is multiplied out.
  double y_dot_x = 0;
  const auto solved = [&](int64_t row, float self_weight, const float* u_row) {
    const float inverse = row_factor(row, self_weight);
    const float scale = in.value_scale[row];
    const float* v = in.v.row<float>(b, row, h);
    const float* x = in.x.row<float>(b, row, h);
    float* g = sweep.d_out.at(row * dim);
    for (int64_t c = 0; c < dim; ++c) g[c] = -inverse * u_row[c];
    const double g_dot_v = FixedOrderSum(dim, [g, v](int64_t c) {
      return static_cast<double>(g[c]) * static_cast<double>(v[c]);
    });
    const double g_dot_x = FixedOrderSum(dim, [g, x](int64_t c) {
      return static_cast<double>(g[c]) * static_cast<double>(x[c]);
    });
    *sweep.delta.at(row) =
        closed_form ? static_cast<float>(static_cast<double>(scale) * g_dot_v -
                                         in.lambda * g_dot_x)
                    : Dot(g, p_x.at(row * dim), dim);
    in.d_value_scale[row] = static_cast<float>(-g_dot_v);
    y_dot_x -= g_dot_x;
    float* d_v = in.d_v.row<float>(b, row, h);
    for (int64_t c = 0; c < dim; ++c) d_v[c] = -scale * g[c];
  };
  SolveHeadAdjoint(keys, {row_factor, solved}, &sweep, u.data());
  sweep.AddSelfGradients();
  UnpackScoreGradients(in, b, h, sweep);
  return -in.lambda * y_dot_x;
}

void CheckInputs(const ConstHeadTensor& r, const ConstHeadTensor& v,
                 const ConstTensor& column_scale,
                 const ConstTensor& value_scale, const ConstTensor& log_lambda,
                 const ConstHeadTensor& x, const ConstTensor& lse) {
  CheckHeadShape(r, "r", r.batch, r.seq_len, r.num_heads, r.head_dim);
  CheckHeadShape(v, "v", r.batch, r.seq_len, r.num_heads, r.head_dim);
  CheckHeadShape(x, "x", r.batch, r.seq_len, r.num_heads, r.head_dim);
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(value_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(lse, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(log_lambda, {r.num_heads});
}

double Lambda(const ConstTensor& log_lambda, int64_t h) {
  return std::exp(static_cast<double>(log_lambda.data<float>()[h]));
}

}  // namespace

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void KrrSolveForward(ConstHeadTensor r, ConstHeadTensor v,
                     ConstTensor column_scale, ConstTensor value_scale,
                     ConstTensor log_lambda, const AttentionMask& mask,
                     SolvePrecision /*precision*/, int64_t first_row,
                     HeadTensor x, Tensor lse, Stream& /*stream*/) {
  CheckInputs(r, v, column_scale, value_scale, log_lambda, x, lse);
  CUBIT_CHECK(first_row >= 0 && first_row <= r.seq_len) << first_row;
  CUBIT_CHECK(mask.causal || first_row == 0)
      << "a dense system cannot be continued";
  ParallelFor(r.batch * r.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / r.num_heads;
      const int64_t h = i % r.num_heads;
      const int64_t row = i * r.seq_len;
      const ForwardArguments in = {r,
                                   v,
                                   column_scale.data<float>() + row,
                                   value_scale.data<float>() + row,
                                   Lambda(log_lambda, h),
                                   first_row,
                                   x,
                                   lse.data<float>() + row};
      if (mask.causal) {
        ForwardHead(in, mask, b, h);
      } else {
        DenseKrr(r, in.column_scale, in.lambda, mask, b, h)
            .Forward(v, in.value_scale, x, in.lse);
      }
    }
  });
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void KrrSolveBackward(ConstHeadTensor r, ConstHeadTensor v,
                      ConstTensor column_scale, ConstTensor value_scale,
                      ConstTensor log_lambda, const AttentionMask& mask,
                      SolvePrecision /*precision*/, const KrrBefore& before,
                      ConstHeadTensor x, ConstTensor lse, ConstHeadTensor d_x,
                      HeadTensor /*y*/, HeadTensor d_r, HeadTensor d_v,
                      Tensor d_column_scale, Tensor d_value_scale,
                      Tensor d_log_lambda, Tensor health, Tensor d_r_sums,
                      Tensor d_v_sums, Stream& stream) {
  CheckInputs(r, v, column_scale, value_scale, log_lambda, x, lse);
  CheckInputs(d_r, d_v, d_column_scale, d_value_scale, d_log_lambda, d_x, lse);
  const bool turns = !before.rotary_table.empty();
  if (turns) CheckRotary(before.rotary_table, 0, r);
  if (!health.empty()) {
    KrrHealth(r, v, column_scale, value_scale, log_lambda, x, lse, health,
              stream);
  }
  std::vector<double> partials(static_cast<size_t>(r.batch * r.num_heads));
  ParallelFor(r.batch * r.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / r.num_heads;
      const int64_t h = i % r.num_heads;
      const int64_t row = i * r.seq_len;
      const KrrHeadBackward in = {r,
                                  v,
                                  column_scale.data<float>() + row,
                                  value_scale.data<float>() + row,
                                  Lambda(log_lambda, h),
                                  x,
                                  lse.data<float>() + row,
                                  d_x,
                                  d_r,
                                  d_v,
                                  d_column_scale.data<float>() + row,
                                  d_value_scale.data<float>() + row};
      partials[static_cast<size_t>(i)] =
          mask.causal ? BackwardHead(in, mask, b, h)
                      : DenseKrr(r, in.column_scale, in.lambda, mask, b, h)
                            .Backward(in);
      if (before.normalised) GoThroughNorm(in, b, h);
    }
  });
  float* d_lambda = d_log_lambda.data<float>();
  for (int64_t h = 0; h < r.num_heads; ++h) {
    double sum = 0;
    for (int64_t b = 0; b < r.batch; ++b) {
      sum += partials[static_cast<size_t>(b * r.num_heads + h)];
    }
    d_lambda[h] += static_cast<float>(sum);
  }
  if (turns) RotaryBackward(before.rotary_table, 0, d_r, stream);
  AddHeadSums(d_r, d_r_sums, stream);
  AddHeadSums(d_v, d_v_sums, stream);
}

}  // namespace cubit
