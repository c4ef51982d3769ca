// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/chunked_attention.h"
#include "ops/chunked_attention_pair.h"
#include "ops/reduction.h"
#include "ops/score_tile.h"
#include "ops/tile_sweep.h"

namespace cubit {
namespace {

void BackwardHead(const AttentionChunkRows& rows, const ConstHeadTensor& k,
                  const ConstHeadTensor& v, float scale,
                  const VisibleKeys& keys, int64_t b, int64_t h,
                  const AttentionChunkGradients& gradients) {
  const int64_t num_rows = rows.q.seq_len;
  const int64_t dim = rows.q.head_dim;
  GradientSweep sweep(num_rows, k.seq_len, dim, GradientSweep::Rows::kPlain);
  // The values pass through the memory of the keys on their way.
  PackBlocks(v, b, h, sweep.key_rows.data(), sweep.value_blocks.data());
  PackBlocks(k, b, h, sweep.key_rows.data(), sweep.head.key_blocks.data());
  PackRows(rows.q, b, h, 0, num_rows, scale, sweep.head.query_rows.data());
  PackRows(rows.d_out, b, h, 0, num_rows, 1.0f, sweep.d_out.data());
  const float* lse = HeadRow<float>(rows.lse, b, h);
  const float* delta = HeadRow<float>(rows.delta, b, h);
  std::copy(lse, lse + num_rows, sweep.lse.data());
  std::copy(delta, delta + num_rows, sweep.delta.data());

  Floats d_values(k.seq_len * dim);
  std::fill(d_values.data(), d_values.at(k.seq_len * dim), 0.0f);
  SweepPair(keys, d_values.data(), &sweep);
  float* d_queries = sweep.d_query_rows.data();
  for (int64_t c = 0; c < num_rows * dim; ++c) d_queries[c] *= scale;
  UnpackRows(d_queries, b, h, 0, num_rows, /*accumulate=*/true, gradients.d_q);
  UnpackRows(sweep.d_key_rows.data(), b, h, 0, k.seq_len, true, gradients.d_k);
  UnpackRows(d_values.data(), b, h, 0, k.seq_len, true, gradients.d_v);
}

}  // namespace

void BeginRowSums(const RowSums& sums, Stream& /*stream*/) {
  CheckRowSums(sums, sums.weighted);
  const auto no_key = [](int64_t) {
    return -std::numeric_limits<float>::infinity();
  };
  ForEachHead(
      sums.weighted.batch, sums.weighted.num_heads,
      [&](int64_t b, int64_t h) { HeadSums(sums, b, h).Begin(no_key); });
}

void AttentionChunkForward(ConstHeadTensor q, ConstHeadTensor k,
                           ConstHeadTensor v, float scale,
                           const ChunkMask& mask, const RowSums& sums,
                           Stream& /*stream*/) {
  CheckLike(q, "q", q);
  CheckChunk(k, "k", q);
  CheckLike(v, "v", k);
  CheckRowSums(sums, q);
  ForEachHead(q.batch, q.num_heads, [&](int64_t b, int64_t h) {
    const VisibleKeys keys =
        KeysOfPair(mask, b, q.seq_len, k.seq_len, /*strict=*/false);
    if (!AnyVisible(keys, q.seq_len, k.seq_len)) return;
    ScoreHead head(q.seq_len, k.seq_len, q.head_dim);
    PackRows(q, b, h, 0, q.seq_len, scale, head.query_rows.data());
    Floats values(k.seq_len * q.head_dim);
    // The keys pass through the memory of the values on their way.
    PackBlocks(k, b, h, values.data(), head.key_blocks.data());
    PackRows(v, b, h, 0, k.seq_len, 1.0f, values.data());
    AddKeys(head, keys, values.data(), /*fixed_shift=*/false,
            HeadSums(sums, b, h));
  });
}

void FinishRowSums(const RowSums& sums, HeadTensor out, Tensor lse,
                   Stream& /*stream*/) {
  CheckRowSums(sums, out);
  CheckPerToken(lse, "lse", out);
  ForEachHead(out.batch, out.num_heads, [&](int64_t b, int64_t h) {
    const double* row_sum = HeadRow<double>(sums.row_sum, b, h);
    const float* row_max = HeadRow<float>(sums.row_max, b, h);
    float* lse_row = HeadRow<float>(lse, b, h);
    for (int64_t i = 0; i < out.seq_len; ++i) {
      const double sum = row_sum[i];
      const float inverse = sum == 0 ? 0.0f : static_cast<float>(1.0 / sum);
      const float* weighted = sums.weighted.row<float>(b, i, h);
      float* out_row = out.row<float>(b, i, h);
      for (int64_t c = 0; c < out.head_dim; ++c) {
        out_row[c] = inverse * weighted[c];
      }
      lse_row[i] = sum == 0
                       ? -std::numeric_limits<float>::infinity()
                       : static_cast<float>(static_cast<double>(row_max[i]) +
                                            std::log(sum));
    }
  });
}

void AttentionChunkDelta(ConstHeadTensor out, ConstHeadTensor d_out,
                         Tensor delta, Stream& /*stream*/) {
  CheckLike(out, "out", out);
  CheckLike(d_out, "d_out", out);
  CheckPerToken(delta, "delta", out);
  ForEachHead(out.batch, out.num_heads, [&](int64_t b, int64_t h) {
    float* delta_row = HeadRow<float>(delta, b, h);
    for (int64_t i = 0; i < out.seq_len; ++i) {
      const float* value = out.row<float>(b, i, h);
      const float* d_value = d_out.row<float>(b, i, h);
      delta_row[i] = static_cast<float>(FixedOrderSum(
          out.head_dim,
          [value, d_value](int64_t c) { return value[c] * d_value[c]; }));
    }
  });
}

void AttentionChunkBackward(const AttentionChunkRows& rows, ConstHeadTensor k,
                            ConstHeadTensor v, float scale,
                            const ChunkMask& mask,
                            const AttentionChunkGradients& gradients,
                            Stream& /*stream*/) {
  const ConstHeadTensor& q = rows.q;
  CheckLike(q, "q", q);
  CheckLike(rows.d_out, "d_out", q);
  CheckLike(gradients.d_q, "d_q", q);
  CheckChunk(k, "k", q);
  CheckLike(v, "v", k);
  CheckLike(gradients.d_k, "d_k", k);
  CheckLike(gradients.d_v, "d_v", k);
  CheckPerToken(rows.lse, "lse", q);
  CheckPerToken(rows.delta, "delta", q);
  ForEachHead(q.batch, q.num_heads, [&](int64_t b, int64_t h) {
    const VisibleKeys keys =
        KeysOfPair(mask, b, q.seq_len, k.seq_len, /*strict=*/false);
    if (!AnyVisible(keys, q.seq_len, k.seq_len)) return;
    BackwardHead(rows, k, v, scale, keys, b, h, gradients);
  });
}

}  // namespace cubit
