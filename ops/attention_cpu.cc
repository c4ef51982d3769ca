// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "ops/attention.h"
#include "ops/reduction.h"
#include "ops/score_tile.h"
#include "ops/tile_sweep.h"
#include "runtime/check.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

// Tile of queries [row, ...) and keys [column, ...), cut at both ends.
TileRange TileAt(int64_t row, int64_t num_queries, int64_t column,
                 int64_t num_keys) {
  return {row, std::min(kTile, num_queries - row), column,
          std::min(kTile, num_keys - column)};
}

struct ForwardArguments {
  ConstHeadTensor q, k, v;
  float scale;
  HeadTensor out;
  Tensor lse;
};

void ForwardHead(const ForwardArguments& in, const VisibleKeys& keys, int64_t b,
                 int64_t h) {
  const ConstHeadTensor& q = in.q;
  const ConstHeadTensor& k = in.k;
  const int64_t dim = q.head_dim;
  ScoreHead head(q.seq_len, k.seq_len, dim);
  PackRows(q, b, h, 0, q.seq_len, in.scale, head.query_rows.data());
  Floats values(k.seq_len * dim);
  // The keys pass through the memory of the values on their way.
  PackRows(k, b, h, 0, k.seq_len, 1.0f, values.data());
  TransposeBlocks(values.data(), k.seq_len, dim, head.key_blocks.data());
  PackRows(in.v, b, h, 0, k.seq_len, 1.0f, values.data());

  float* lse = in.lse.data<float>() + (b * q.num_heads + h) * q.seq_len;
  SoftmaxRows sums(dim);
  Floats weights(kTile * kTile);
  for (int64_t row = 0; row < q.seq_len; row += kTile) {
    const int64_t rows = std::min(kTile, q.seq_len - row);
    sums.Start(rows, nullptr);
    for (int64_t column = 0; column < k.seq_len; column += kTile) {
      const TileRange tile = TileAt(row, q.seq_len, column, k.seq_len);
      if (!keys.Touches(tile)) continue;
      sums.Weigh(head, keys, tile, weights.data());
      sums.AddValues(tile, weights.data(), values.at(column * dim));
    }
    for (int64_t i = 0; i < rows; ++i) {
      const float inverse = static_cast<float>(1.0 / sums.sum(i));
      float* out_row = in.out.row<float>(b, row + i, h);
      const float* weighted = sums.weighted(i);
      for (int64_t c = 0; c < dim; ++c) out_row[c] = inverse * weighted[c];
      lse[row + i] = sums.LogSumExp(i);
    }
  }
}

struct BackwardInputs {
  ConstHeadTensor q, k, v, out, d_out;
  const float* lse;
  float* delta;
};

// Packs head (b, h) for the sweep and computes delta.
void PackGradients(const BackwardInputs& in, float scale, int64_t b, int64_t h,
                   GradientSweep* sweep) {
  const int64_t num_rows = in.q.seq_len;
  const int64_t dim = in.q.head_dim;
  // The values pass through the memory of the keys on their way.
  PackRows(in.v, b, h, 0, num_rows, 1.0f, sweep->key_rows.data());
  TransposeBlocks(sweep->key_rows.data(), num_rows, dim,
                  sweep->value_blocks.data());
  PackRows(in.k, b, h, 0, num_rows, 1.0f, sweep->key_rows.data());
  TransposeBlocks(sweep->key_rows.data(), num_rows, dim,
                  sweep->head.key_blocks.data());
  PackRows(in.q, b, h, 0, num_rows, scale, sweep->head.query_rows.data());
  PackRows(in.d_out, b, h, 0, num_rows, 1.0f, sweep->d_out.data());
  std::copy(in.lse, in.lse + num_rows, sweep->lse.data());
  for (int64_t i = 0; i < num_rows; ++i) {
    const float* out = in.out.row<float>(b, i, h);
    const float* d_out = sweep->d_out.at(i * dim);
    in.delta[i] = static_cast<float>(FixedOrderSum(
        dim, [out, d_out](int64_t c) { return out[c] * d_out[c]; }));
  }
  std::copy(in.delta, in.delta + num_rows, sweep->delta.data());
}

void BackwardHead(const VisibleKeys& keys, GradientSweep* sweep,
                  float* d_values) {
  const int64_t num_rows = sweep->head.num_queries;
  const int64_t dim = sweep->head.head_dim;
  std::fill(d_values, d_values + num_rows * dim, 0.0f);
  Floats weights(kTile * kTile);
  for (int64_t column = 0; column < num_rows; column += kTile) {
    for (int64_t row = 0; row < num_rows; row += kTile) {
      const TileRange tile = TileAt(row, num_rows, column, num_rows);
      if (!keys.Touches(tile)) continue;
      sweep->Weights(keys, tile, weights.data());
      sweep->AddValueGradients(tile, weights.data(), d_values + column * dim);
      sweep->AddScoreGradients(tile, weights.data());
    }
  }
}

}  // namespace

void AttentionForward(ConstHeadTensor q, ConstHeadTensor k, ConstHeadTensor v,
                      float scale, const AttentionMask& mask, HeadTensor out,
                      Tensor lse, Stream& /*stream*/) {
  CheckHeadShape(q, "q", q.batch, q.seq_len, q.num_heads, q.head_dim);
  CheckHeadShape(k, "k", q.batch, k.seq_len, q.num_heads, q.head_dim);
  CheckHeadShape(v, "v", q.batch, k.seq_len, q.num_heads, q.head_dim);
  CheckHeadShape(out, "out", q.batch, q.seq_len, q.num_heads, q.head_dim);
  CUBIT_CHECK_SHAPE(lse, {q.batch, q.num_heads, q.seq_len});
  ParallelFor(q.batch * q.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / q.num_heads;
      const VisibleKeys keys(mask, b, q.seq_len, k.seq_len, /*strict=*/false);
      ForwardHead({q, k, v, scale, out, lse}, keys, b, i % q.num_heads);
    }
  });
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void AttentionBackward(ConstHeadTensor q, ConstHeadTensor k, ConstHeadTensor v,
                       ConstHeadTensor out, ConstTensor lse,
                       ConstHeadTensor d_out, float scale,
                       const AttentionMask& mask,
                       const AttentionAccumulate& accumulate, HeadTensor d_q,
                       HeadTensor d_k, HeadTensor d_v, Tensor delta,
                       Stream& /*stream*/) {
  const int64_t num_rows = q.seq_len;
  const int64_t dim = q.head_dim;
  const auto check = [&q](const ConstHeadTensor& x, const char* name) {
    CheckHeadShape(x, name, q.batch, q.seq_len, q.num_heads, q.head_dim);
  };
  check(q, "q"), check(k, "k"), check(v, "v"), check(out, "out");
  check(d_out, "d_out"), check(d_q, "d_q"), check(d_k, "d_k");
  check(d_v, "d_v");
  CUBIT_CHECK_SHAPE(lse, {q.batch, q.num_heads, num_rows});
  CUBIT_CHECK_SHAPE(delta, {q.batch, q.num_heads, num_rows});
  ParallelFor(q.batch * q.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / q.num_heads;
      const int64_t h = i % q.num_heads;
      const VisibleKeys keys(mask, b, num_rows, num_rows, /*strict=*/false);
      GradientSweep sweep(num_rows, num_rows, dim, GradientSweep::Rows::kPlain);
      PackGradients({q, k, v, out, d_out, lse.data<float>() + i * num_rows,
                     delta.data<float>() + i * num_rows},
                    scale, b, h, &sweep);
      Floats d_values(num_rows * dim);
      BackwardHead(keys, &sweep, d_values.data());
      float* d_queries = sweep.d_query_rows.data();
      for (int64_t c = 0; c < num_rows * dim; ++c) d_queries[c] *= scale;
      UnpackRows(d_queries, b, h, 0, num_rows, accumulate.d_q, d_q);
      UnpackRows(sweep.d_key_rows.data(), b, h, 0, num_rows, accumulate.d_k,
                 d_k);
      UnpackRows(d_values.data(), b, h, 0, num_rows, accumulate.d_v, d_v);
    }
  });
}

}  // namespace cubit
