// SPDX-License-Identifier: Apache-2.0
//
// The two directions of a streamed softmax, tile by tile, for one head:
// SoftmaxRows sums values under the softmax of a block of queries,
// GradientSweep takes the gradients back. attention_cpu.cc uses them as they
// are. The solves of KRR and Delta are attention whose values are its own
// outputs; they put a triangular solve (triangular_block.h) between the tiles
// (block_solve.h).

#ifndef CUBIT_OPS_TILE_SWEEP_H_
#define CUBIT_OPS_TILE_SWEEP_H_

#include <array>
#include <cstdint>
#include <vector>

#include "ops/score_tile.h"

namespace cubit {

// Sums over keys for one block of at most kTile queries:
//   sum_i = sum_j E_ij,  weighted_i = sum_j E_ij values_j,
//   E_ij = exp(S_ij - shift_i),
// where shift is given, or else the maximum of the scores seen so far: then
// what was summed under a smaller maximum is scaled down (Milakov and
// Gimelshein).
class SoftmaxRows {
 public:
  explicit SoftmaxRows(int64_t head_dim);

  // Begins a block of `rows` queries; `shift` [rows] is S_ii, where that is
  // known to be the row's maximum (E_ii is then 1 exactly), or null for the
  // running maximum.
  void Start(int64_t rows, const float* shift);
  // After Start: row i goes on from sums of earlier keys. `shift` must be that
  // of Start, where it was given; `weighted` [K].
  void Restore(int64_t i, float shift, double sum, const float* weighted);

  // weights [rows, kTile] = E on the tile, zero where a query does not see the
  // key; adds to sum.
  void Weigh(const ScoreHead& head, const VisibleKeys& keys,
             const TileRange& tile, float* weights);
  // weighted += E values; `values` [tile.columns, K] are the tile's rows.
  void AddValues(const TileRange& tile, const float* weights,
                 const float* values);

  double sum(int64_t i) const { return sum_[static_cast<size_t>(i)]; }
  float shift(int64_t i) const { return shift_[static_cast<size_t>(i)]; }
  const float* weighted(int64_t i) const { return weighted_.at(i * head_dim_); }
  // log sum_j exp(S_ij); -inf for a query that saw no key.
  float LogSumExp(int64_t i) const;

 private:
  void RaiseShift(int64_t i, const float* scores, int64_t count);
  void WeighUnderRunningMaximum(const VisibleKeys& keys, const TileRange& tile,
                                float* scores);

  int64_t head_dim_;
  bool running_ = false;
  std::array<float, kTile> shift_ = {};
  // Tiles are summed in double: a float sum over a long row would cost the
  // solve, which undoes this average, up to |X| / |V| times its error.
  std::array<double, kTile> sum_ = {};
  Floats weighted_;  // [kTile, K]
};

// P = softmax(S) again, tile by tile, from the log of its rows' sums.
struct KeptSoftmax {
  KeptSoftmax(int64_t queries, int64_t keys, int64_t dim)
      : head(queries, keys, dim), lse(queries) {}

  // P on the tile, zero where a query does not see the key.
  void Weights(const VisibleKeys& keys, const TileRange& tile,
               float* weights) const;
  // sums [tile.columns, K] += P^T rows; `rows` [Tq, K] are those of all
  // queries.
  void AddTransposed(const TileRange& tile, const float* weights,
                     const float* rows, float* sums) const;

  ScoreHead head;
  Floats lse;  // [Tq]
};

// The way back through out_i = f_i sum_j P_ij values_j, P = softmax(S): from
// G = d out, for every tile in turn,
//   d_values_j += f_i P_ij G_i,
//   dP_ij = f_i G_i . values_j,  dS_ij = P_ij (dP_ij - delta_i),
//   d_query_i += dS_ij key_j,  d_key_j += dS_ij query_i.
// delta_i = sum_k P_ik dP_ik has a closed form, which the caller provides.
struct GradientSweep : KeptSoftmax {
  enum class Rows {
    kPlain,  // attention: f = 1
    // Delta: f is beta, and row_products_i = sum_j P_ij G_i . values_j is its
    // gradient.
    kFactored,
    // KRR: f = 1. A row of dS sums to 0, so dS_ii is taken from the rest of the
    // row: where P is near the identity, dP_ii - delta_i has no correct digit.
    kSelfFromSum,
  };

  GradientSweep(int64_t queries, int64_t keys, int64_t dim, Rows kind);

  // d_values [tile.columns, K] += P^T (f G).
  void AddValueGradients(const TileRange& tile, const float* weights,
                         float* d_values) const;
  // Adds the tile to d_query_rows, d_key_rows and row_products.
  void AddScoreGradients(const TileRange& tile, const float* weights);
  // After the last tile; only kSelfFromSum needs it.
  void AddSelfGradients();

  // What AddValueGradients multiplies by: f G.
  const float* value_gradients() const {
    return rows == Rows::kFactored ? factored_d_out.data() : d_out.data();
  }

  Floats key_rows;      // [Tk, K]
  Floats value_blocks;  // [NumTiles(Tk)][K][kTile]
  Floats d_out;         // [Tq, K]: G
  Floats delta;         // [Tq]
  Floats d_query_rows;  // [Tq, K], zero at first
  Floats d_key_rows;    // [Tk, K], zero at first

  Rows rows;
  // Whether query i stands where key i does: kSelfFromSum leaves those out.
  bool own_keys = true;
  std::vector<double> row_sums;  // [Tq]: sum of dS_ij over j != i, of size 0
                                 // unless rows are kSelfFromSum
  // Of size 0 unless rows are factored.
  Floats factors;                    // [Tq]: f
  Floats factored_d_out;             // [Tq, K]: f G
  std::vector<double> row_products;  // [Tq], zero at first

 private:
  void ScoreGradientRow(const TileRange& tile, int64_t i, const float* weights,
                        float* d_scores);

  Floats products_;  // [kTile, kTile]
};

}  // namespace cubit

#endif  // CUBIT_OPS_TILE_SWEEP_H_
