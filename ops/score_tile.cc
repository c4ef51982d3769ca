// SPDX-License-Identifier: Apache-2.0

#include "ops/score_tile.h"

#include <algorithm>
#include <cstdlib>

#include "ops/blas.h"
#include "ops/vector_math.h"
#include "runtime/check.h"

namespace cubit {

Floats::Floats(int64_t count) {
  constexpr size_t kAlignment = 64;
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  const size_t padded =
      std::max(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  data_.reset(static_cast<float*>(std::aligned_alloc(kAlignment, padded)));
  CUBIT_CHECK(data_ != nullptr) << "out of memory: " << padded << " bytes";
}

void Floats::Free::operator()(float* data) const { std::free(data); }

VisibleKeys::VisibleKeys(const AttentionMask& mask, int64_t b,
                         int64_t num_queries, int64_t num_keys, bool strict)
    : intervals_(static_cast<size_t>(num_queries)),
      own_keys_(num_queries == num_keys) {
  CUBIT_CHECK_LE(num_queries, num_keys);
  CUBIT_CHECK(mask.causal || !strict);
  const int64_t offset = num_keys - num_queries;
  const int32_t* segments = nullptr;
  if (!mask.segment_ids.empty()) {
    CUBIT_CHECK_EQ(mask.segment_ids.shape().rank(), 2);
    CUBIT_CHECK_EQ(mask.segment_ids.dim(1), num_keys);
    CUBIT_CHECK_LT(b, mask.segment_ids.dim(0));
    segments = mask.segment_ids.data<int32_t>() + b * num_keys;
  }
  // Documents from first to last: [begin, end).
  int64_t begin = 0;
  while (begin < num_keys) {
    int64_t end = segments == nullptr ? num_keys : begin + 1;
    while (end < num_keys && segments[end] == segments[begin]) ++end;
    CUBIT_CHECK(end == num_keys || segments[end] > segments[begin])
        << "segment_ids decreases at position " << end;
    for (int64_t key = std::max(begin, offset); key < end; ++key) {
      intervals_[static_cast<size_t>(key - offset)] = {
          begin, mask.causal ? key + (strict ? 0 : 1) : end};
    }
    begin = end;
  }
}

VisibleKeys VisibleKeys::OfEarlierChunk(const ConstTensor& query_segments,
                                        const ConstTensor& key_segments,
                                        int64_t b, int64_t num_queries,
                                        int64_t num_keys) {
  VisibleKeys visible(num_queries);
  CUBIT_CHECK_EQ(query_segments.empty(), key_segments.empty());
  if (query_segments.empty()) {
    for (Interval& interval : visible.intervals_) interval = {0, num_keys};
    return visible;
  }
  CUBIT_CHECK_EQ(query_segments.shape().rank(), 2);
  CUBIT_CHECK_SHAPE(query_segments, {query_segments.dim(0), num_queries});
  CUBIT_CHECK_SHAPE(key_segments, {query_segments.dim(0), num_keys});
  CUBIT_CHECK_LT(b, query_segments.dim(0));
  CUBIT_CHECK_GT(num_keys, 0);
  const int32_t* of_query = query_segments.data<int32_t>() + b * num_queries;
  const int32_t* of_key = key_segments.data<int32_t>() + b * num_keys;
  const int32_t last = of_key[num_keys - 1];
  int64_t begin = num_keys - 1;
  while (begin > 0 && of_key[begin - 1] == last) --begin;
  for (int64_t i = 0; i < num_queries; ++i) {
    CUBIT_CHECK_GE(of_query[i], i == 0 ? last : of_query[i - 1])
        << "segment ids decrease at query " << i;
    visible.intervals_[static_cast<size_t>(i)] = {
        of_query[i] == last ? begin : num_keys, num_keys};
  }
  return visible;
}

VisibleKeys::Interval VisibleKeys::InTile(const TileRange& tile,
                                          int64_t i) const {
  const Interval keys = Of(tile.row + i);
  Interval columns;
  columns.begin =
      std::clamp<int64_t>(keys.begin - tile.column, 0, tile.columns);
  columns.end =
      std::clamp<int64_t>(keys.end - tile.column, columns.begin, tile.columns);
  return columns;
}

bool VisibleKeys::Touches(const TileRange& tile) const {
  return Of(tile.row).begin < tile.column + tile.columns &&
         Of(tile.row + tile.rows - 1).end > tile.column;
}

void PackRows(const ConstHeadTensor& x, int64_t b, int64_t h, int64_t begin,
              int64_t end, float factor, float* rows) {
  for (int64_t t = begin; t < end; ++t) {
    const float* source = x.row<float>(b, t, h);
    float* target = rows + t * x.head_dim;
    for (int64_t c = 0; c < x.head_dim; ++c) target[c] = factor * source[c];
  }
}

void UnpackRows(const float* rows, int64_t b, int64_t h, int64_t begin,
                int64_t end, bool accumulate, const HeadTensor& x) {
  for (int64_t t = begin; t < end; ++t) {
    const float* source = rows + t * x.head_dim;
    float* target = x.row<float>(b, t, h);
    if (accumulate) {
      for (int64_t c = 0; c < x.head_dim; ++c) target[c] += source[c];
    } else {
      std::copy(source, source + x.head_dim, target);
    }
  }
}

void TransposeBlocks(const float* rows, int64_t num_rows, int64_t head_dim,
                     float* blocks) {
  for (int64_t begin = 0; begin < num_rows; begin += kTile) {
    const int64_t count = std::min(kTile, num_rows - begin);
    float* block = blocks + begin * head_dim;
    if (count < kTile) std::fill(block, block + head_dim * kTile, 0.0f);
    for (int64_t t = 0; t < count; ++t) {
      const float* row = rows + (begin + t) * head_dim;
      for (int64_t c = 0; c < head_dim; ++c) block[c * kTile + t] = row[c];
    }
  }
}

void ScoreTile(const ScoreHead& head, const TileRange& tile, const float* shift,
               float* scores) {
  const int64_t block = tile.column / kTile;
  if (shift != nullptr) {
    // The product adds to what is there, which saves a pass over the tile.
    for (int64_t i = 0; i < tile.rows; ++i) {
      std::fill(scores + i * kTile, scores + i * kTile + tile.columns,
                -shift[i]);
    }
  }
  Sgemm(false, false, tile.rows, tile.columns, head.head_dim, 1.0f,
        head.query_rows.at(tile.row * head.head_dim), head.head_dim,
        head.key_blocks.at(block * head.head_dim * kTile + tile.column % kTile),
        kTile, shift == nullptr ? 0.0f : 1.0f, scores, kTile);
}

void ExponentiateTile(const VisibleKeys& keys, const TileRange& tile,
                      float* scores) {
  bool all_seen = tile.columns == kTile;
  for (int64_t i = 0; all_seen && i < tile.rows; ++i) {
    const VisibleKeys::Interval seen = keys.InTile(tile, i);
    all_seen = seen.end - seen.begin == kTile;
  }
  if (all_seen) {
    VectorExp(scores, scores, tile.rows * kTile);
    return;
  }
  for (int64_t i = 0; i < tile.rows; ++i) {
    const VisibleKeys::Interval seen = keys.InTile(tile, i);
    float* row = scores + i * kTile;
    VectorExp(row + seen.begin, row + seen.begin, seen.end - seen.begin);
    std::fill(row, row + seen.begin, 0.0f);
    std::fill(row + seen.end, row + tile.columns, 0.0f);
  }
}

void CheckHeadShape(const ConstHeadTensor& x, const char* name, int64_t batch,
                    int64_t seq_len, int64_t num_heads, int64_t head_dim) {
  CUBIT_CHECK(!x.empty() || batch * seq_len * num_heads * head_dim == 0)
      << name << " is absent";
  CUBIT_CHECK(x.dtype == DType::kFloat32)
      << name << ": wanted F32, got " << Name(x.dtype);
  const Shape wanted = {batch, seq_len, num_heads, head_dim};
  const Shape got = {x.batch, x.seq_len, x.num_heads, x.head_dim};
  CUBIT_CHECK(got == wanted)
      << name << ": wanted " << wanted.ToString() << ", got " << got.ToString();
}

}  // namespace cubit
