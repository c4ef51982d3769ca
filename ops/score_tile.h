// SPDX-License-Identifier: Apache-2.0
//
// What every streamed pass over softmax scores shares on the CPU (attention,
// KRR, Delta): one head packed into contiguous memory, the keys that each query
// sees, and one tile of scores. tile_sweep.h builds the passes from it.

#ifndef CUBIT_OPS_SCORE_TILE_H_
#define CUBIT_OPS_SCORE_TILE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/attention.h"
#include "runtime/tensor.h"

namespace cubit {

// Rows and columns of a tile. 64 x 64 floats (16 KiB) stay in the first-level
// cache together with the 64 rows of a factor, and OpenBLAS multiplies them at
// its full rate (tests/benchmarks/krr_cpu.cc); 128 halves the share of useful
// work in tiles on the diagonal.
constexpr int64_t kTile = 64;

// Number of tiles that cover `n` rows.
constexpr int64_t NumTiles(int64_t n) { return (n + kTile - 1) / kTile; }

// Scratch floats of one call, aligned for vector loads, not initialised.
class Floats {
 public:
  explicit Floats(int64_t count);
  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }
  float* at(int64_t offset) { return data_.get() + offset; }
  const float* at(int64_t offset) const { return data_.get() + offset; }

 private:
  struct Free {
    void operator()(float* data) const;
  };
  std::unique_ptr<float[], Free> data_;
};

// A rectangle of scores: queries [row, row + rows), keys [column, column +
// columns); `column` to the end lies in one block of kTile keys.
struct TileRange {
  int64_t row = 0;
  int64_t rows = 0;
  int64_t column = 0;
  int64_t columns = 0;
};

// The keys that each query of one sequence sees: an interval, because documents
// are contiguous.
class VisibleKeys {
 public:
  struct Interval {
    int64_t begin = 0;
    int64_t end = 0;
  };

  // Sequence `b` of a mask. With `strict` a query does not see its own key
  // (causal masks only).
  // CHECK: segment_ids is [B, num_keys] and does not decrease.
  VisibleKeys(const AttentionMask& mask, int64_t b, int64_t num_queries,
              int64_t num_keys, bool strict);
  // Queries of a chunk that comes after all keys, which are another chunk of
  // the sequence: a query sees the keys of its document, which can only be the
  // last one of the keys. Documents of sequence `b` as in AttentionMask, [B,
  // num_queries] and [B, num_keys], both absent: one document.
  // CHECK: shapes; no query's document comes before the last one of the keys.
  static VisibleKeys OfEarlierChunk(const ConstTensor& query_segments,
                                    const ConstTensor& key_segments, int64_t b,
                                    int64_t num_queries, int64_t num_keys);

  // Both bounds never decrease from one query to the next.
  Interval Of(int64_t query) const {
    return intervals_[static_cast<size_t>(query)];
  }
  // Columns of the tile (from 0) that query tile.row + i sees; may be empty.
  Interval InTile(const TileRange& tile, int64_t i) const;
  // Whether any score of the tile counts.
  bool Touches(const TileRange& tile) const;
  // Whether query i stands where key i does.
  bool own_keys() const { return own_keys_; }

 private:
  explicit VisibleKeys(int64_t num_queries)
      : intervals_(static_cast<size_t>(num_queries)) {}

  std::vector<Interval> intervals_;
  bool own_keys_ = false;
};

// Copies rows [begin, end) of head (b, h), times `factor`, to the same rows of
// `rows` [T, K], contiguous.
void PackRows(const ConstHeadTensor& x, int64_t b, int64_t h, int64_t begin,
              int64_t end, float factor, float* rows);

// The way back: rows [begin, end) of `rows` are written to head (b, h) of x, or
// added if `accumulate`.
void UnpackRows(const float* rows, int64_t b, int64_t h, int64_t begin,
                int64_t end, bool accumulate, const HeadTensor& x);

// Transposes each block of kTile rows: blocks [NumTiles(num_rows)][K][kTile].
// As the right factor of a product this form is half as fast again as
// rows read transposed. Columns past num_rows are zero.
void TransposeBlocks(const float* rows, int64_t num_rows, int64_t head_dim,
                     float* blocks);

// Both factors of one head's scores, S_ij = query_i . key_j.
struct ScoreHead {
  ScoreHead(int64_t queries, int64_t keys, int64_t dim)
      : num_queries(queries),
        num_keys(keys),
        head_dim(dim),
        query_rows(queries * dim),
        key_blocks(NumTiles(keys) * dim * kTile) {}

  int64_t num_queries;
  int64_t num_keys;
  int64_t head_dim;
  Floats query_rows;  // [Tq, K], every factor of the logits included
  Floats key_blocks;  // [NumTiles(Tk)][K][kTile]
};

// scores [rows, kTile] = S - shift_i on the tile; `shift` [rows] or null (0).
// Columns past tile.columns are not touched.
void ScoreTile(const ScoreHead& head, const TileRange& tile, const float* shift,
               float* scores);

// scores = exp(scores), 0 where a query does not see the key.
void ExponentiateTile(const VisibleKeys& keys, const TileRange& tile,
                      float* scores);

// CHECKs that a view is fp32 and has these extents; `name` for the message.
void CheckHeadShape(const ConstHeadTensor& x, const char* name, int64_t batch,
                    int64_t seq_len, int64_t num_heads, int64_t head_dim);

}  // namespace cubit

#endif  // CUBIT_OPS_SCORE_TILE_H_
