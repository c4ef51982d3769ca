// SPDX-License-Identifier: Apache-2.0

#include "ops/chunked_attention_pair.h"

#include <algorithm>

#include "ops/attention.h"
#include "runtime/check.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

// Tile of queries [row, ...) and keys [column, ...), cut at both ends.
TileRange TileAt(const ScoreHead& head, int64_t row, int64_t column) {
  return {row, std::min(kTile, head.num_queries - row), column,
          std::min(kTile, head.num_keys - column)};
}

}  // namespace

void ForEachHead(int64_t batch, int64_t num_heads,
                 absl::FunctionRef<void(int64_t b, int64_t h)> body) {
  ParallelFor(batch * num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i / num_heads, i % num_heads);
  });
}

VisibleKeys KeysOfPair(const ChunkMask& mask, int64_t b, int64_t num_queries,
                       int64_t num_keys, bool strict) {
  if (!mask.diagonal) {
    return VisibleKeys::OfEarlierChunk(mask.query_segments, mask.key_segments,
                                       b, num_queries, num_keys);
  }
  CUBIT_CHECK_EQ(num_queries, num_keys);
  AttentionMask causal;
  causal.segment_ids = mask.query_segments;
  return VisibleKeys(causal, b, num_queries, num_keys, strict);
}

bool AnyVisible(const VisibleKeys& keys, int64_t num_queries,
                int64_t num_keys) {
  return num_queries > 0 && num_keys > 0 &&
         keys.Touches({0, num_queries, 0, num_keys});
}

void PackBlocks(const ConstHeadTensor& x, int64_t b, int64_t h, float* rows,
                float* blocks) {
  PackRows(x, b, h, 0, x.seq_len, 1.0f, rows);
  TransposeBlocks(rows, x.seq_len, x.head_dim, blocks);
}

void CheckLike(const ConstHeadTensor& x, const char* name,
               const ConstHeadTensor& like) {
  CheckHeadShape(x, name, like.batch, like.seq_len, like.num_heads,
                 like.head_dim);
}

void CheckChunk(const ConstHeadTensor& x, const char* name,
                const ConstHeadTensor& like) {
  CheckHeadShape(x, name, like.batch, x.seq_len, like.num_heads, like.head_dim);
}

void CheckPerToken(const ConstTensor& x, const char* name,
                   const ConstHeadTensor& like) {
  const Shape wanted = {like.batch, like.num_heads, like.seq_len};
  CUBIT_CHECK(x.shape() == wanted) << name << ": wanted " << wanted.ToString()
                                   << ", got " << x.shape().ToString();
}

void CheckRowSums(const RowSums& sums, const ConstHeadTensor& q) {
  CheckLike(sums.weighted, "weighted", q);
  CheckPerToken(sums.row_max, "row_max", q);
  CheckPerToken(sums.row_sum, "row_sum", q);
}

HeadSums::HeadSums(const RowSums& sums, int64_t b, int64_t h)
    : weighted_(sums.weighted),
      b_(b),
      h_(h),
      row_max_(HeadRow<float>(sums.row_max, b, h)),
      row_sum_(HeadRow<double>(sums.row_sum, b, h)) {}

void HeadSums::Begin(absl::FunctionRef<float(int64_t i)> shift) const {
  for (int64_t i = 0; i < weighted_.seq_len; ++i) {
    row_max_[i] = shift(i);
    row_sum_[i] = 0;
    float* row = weighted_.row<float>(b_, i, h_);
    std::fill(row, row + weighted_.head_dim, 0.0f);
  }
}

void HeadSums::Load(int64_t begin, int64_t rows, bool fixed_shift,
                    SoftmaxRows* block) const {
  block->Start(rows, fixed_shift ? row_max_ + begin : nullptr);
  for (int64_t i = 0; i < rows; ++i) {
    block->Restore(i, row_max_[begin + i], row_sum_[begin + i],
                   weighted_.row<float>(b_, begin + i, h_));
  }
}

void HeadSums::Store(int64_t begin, int64_t rows,
                     const SoftmaxRows& block) const {
  for (int64_t i = 0; i < rows; ++i) {
    row_max_[begin + i] = block.shift(i);
    row_sum_[begin + i] = block.sum(i);
    const float* weighted = block.weighted(i);
    std::copy(weighted, weighted + weighted_.head_dim,
              weighted_.row<float>(b_, begin + i, h_));
  }
}

void AddKeys(const ScoreHead& head, const VisibleKeys& keys,
             const float* values, bool fixed_shift, const HeadSums& sums) {
  SoftmaxRows block(head.head_dim);
  Floats weights(kTile * kTile);
  for (int64_t row = 0; row < head.num_queries; row += kTile) {
    const int64_t rows = std::min(kTile, head.num_queries - row);
    if (!keys.Touches({row, rows, 0, head.num_keys})) continue;
    sums.Load(row, rows, fixed_shift, &block);
    for (int64_t column = 0; column < head.num_keys; column += kTile) {
      const TileRange tile = TileAt(head, row, column);
      if (!keys.Touches(tile)) continue;
      block.Weigh(head, keys, tile, weights.data());
      block.AddValues(tile, weights.data(), values + column * head.head_dim);
    }
    sums.Store(row, rows, block);
  }
}

void AddTransposedPair(const KeptSoftmax& kernel, const VisibleKeys& keys,
                       const float* rows, float* sums) {
  const ScoreHead& head = kernel.head;
  Floats weights(kTile * kTile);
  for (int64_t column = 0; column < head.num_keys; column += kTile) {
    for (int64_t row = 0; row < head.num_queries; row += kTile) {
      const TileRange tile = TileAt(head, row, column);
      if (!keys.Touches(tile)) continue;
      kernel.Weights(keys, tile, weights.data());
      kernel.AddTransposed(tile, weights.data(), rows,
                           sums + column * head.head_dim);
    }
  }
}

void SweepPair(const VisibleKeys& keys, float* d_values, GradientSweep* sweep) {
  const ScoreHead& head = sweep->head;
  Floats weights(kTile * kTile);
  for (int64_t column = 0; column < head.num_keys; column += kTile) {
    for (int64_t row = 0; row < head.num_queries; row += kTile) {
      const TileRange tile = TileAt(head, row, column);
      if (!keys.Touches(tile)) continue;
      sweep->Weights(keys, tile, weights.data());
      if (d_values != nullptr) {
        sweep->AddValueGradients(tile, weights.data(),
                                 d_values + column * head.head_dim);
      }
      sweep->AddScoreGradients(tile, weights.data());
    }
  }
}

}  // namespace cubit
