// SPDX-License-Identifier: Apache-2.0

#include "ops/tile_sweep.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/blas.h"

namespace cubit {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Sum of term(j) over at most kTile terms, in a fixed order; in float, because
// so few terms cost no accuracy and a row of a tile has no time for double.
template <typename Term>
inline float LaneSum(int64_t n, const Term& term) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += term(j + lane);
    }
  }
  for (int64_t lane = 0; j + lane < n; ++lane) lanes[lane] += term(j + lane);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) {
      lanes[lane] += lanes[lane + half];
    }
  }
  return lanes[0];
}

// The largest of x, which has at least one element; NaN does not count unless
// all are.
inline float LaneMaximum(int64_t n, const float* x) {
  constexpr int64_t kLanes = 16;
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, x[0]);
  const auto larger = [](float a, float b) { return a > b ? a : b; };
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = larger(x[j + lane], lanes[lane]);
    }
  }
  for (; j < n; ++j) lanes[0] = larger(x[j], lanes[0]);
  float maximum = lanes[0];
  for (float lane : lanes) maximum = larger(lane, maximum);
  return maximum;
}

}  // namespace

SoftmaxRows::SoftmaxRows(int64_t head_dim)
    : head_dim_(head_dim), weighted_(kTile * head_dim) {}

void SoftmaxRows::Start(int64_t rows, const float* shift) {
  running_ = shift == nullptr;
  if (running_) {
    shift_.fill(-kInfinity);
  } else {
    std::copy(shift, shift + rows, shift_.begin());
  }
  sum_.fill(0);
  std::fill(weighted_.data(), weighted_.at(rows * head_dim_), 0.0f);
}

void SoftmaxRows::Restore(int64_t i, float shift, double sum,
                          const float* weighted) {
  const size_t row = static_cast<size_t>(i);
  shift_[row] = shift;
  sum_[row] = sum;
  std::copy(weighted, weighted + head_dim_, weighted_.at(i * head_dim_));
}

void SoftmaxRows::RaiseShift(int64_t i, const float* scores, int64_t count) {
  const size_t row = static_cast<size_t>(i);
  float maximum = LaneMaximum(count, scores);
  // Only scores that are all -inf or NaN leave no finite maximum; the
  // exponentials then tell them apart.
  if (!(maximum > -kInfinity)) maximum = 0;
  const float old = shift_[row];
  if (old >= maximum) return;
  shift_[row] = maximum;
  if (old == -kInfinity) return;
  const float factor = std::exp(old - maximum);
  sum_[row] *= static_cast<double>(factor);
  float* weighted = weighted_.at(i * head_dim_);
  for (int64_t c = 0; c < head_dim_; ++c) weighted[c] *= factor;
}

void SoftmaxRows::WeighUnderRunningMaximum(const VisibleKeys& keys,
                                           const TileRange& tile,
                                           float* scores) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const VisibleKeys::Interval seen = keys.InTile(tile, i);
    if (seen.begin == seen.end) continue;
    float* row = scores + i * kTile;
    RaiseShift(i, row + seen.begin, seen.end - seen.begin);
    const float row_shift = shift(i);
    for (int64_t j = seen.begin; j < seen.end; ++j) row[j] -= row_shift;
  }
}

void SoftmaxRows::Weigh(const ScoreHead& head, const VisibleKeys& keys,
                        const TileRange& tile, float* weights) {
  if (running_) {
    ScoreTile(head, tile, nullptr, weights);
    WeighUnderRunningMaximum(keys, tile, weights);
  } else {
    ScoreTile(head, tile, shift_.data(), weights);
    // The product rounds S_ii otherwise than its caller did.
    const bool diagonal = keys.own_keys() && tile.row == tile.column;
    for (int64_t i = 0; diagonal && i < tile.rows; ++i) {
      weights[i * kTile + i] = 0;
    }
  }
  ExponentiateTile(keys, tile, weights);
  for (int64_t i = 0; i < tile.rows; ++i) {
    const float* row = weights + i * kTile;
    sum_[static_cast<size_t>(i)] += static_cast<double>(
        LaneSum(tile.columns, [row](int64_t j) { return row[j]; }));
  }
}

void SoftmaxRows::AddValues(const TileRange& tile, const float* weights,
                            const float* values) {
  Sgemm(false, false, tile.rows, head_dim_, tile.columns, 1.0f, weights, kTile,
        values, head_dim_, 1.0f, weighted_.data(), head_dim_);
}

float SoftmaxRows::LogSumExp(int64_t i) const {
  if (sum(i) == 0) return -kInfinity;
  return static_cast<float>(static_cast<double>(shift(i)) + std::log(sum(i)));
}

void KeptSoftmax::Weights(const VisibleKeys& keys, const TileRange& tile,
                          float* weights) const {
  ScoreTile(head, tile, lse.at(tile.row), weights);
  ExponentiateTile(keys, tile, weights);
}

void KeptSoftmax::AddTransposed(const TileRange& tile, const float* weights,
                                const float* rows, float* sums) const {
  const int64_t dim = head.head_dim;
  Sgemm(true, false, tile.columns, dim, tile.rows, 1.0f, weights, kTile,
        rows + tile.row * dim, dim, 1.0f, sums, dim);
}

GradientSweep::GradientSweep(int64_t queries, int64_t keys, int64_t dim,
                             Rows kind)
    : KeptSoftmax(queries, keys, dim),
      key_rows(keys * dim),
      value_blocks(NumTiles(keys) * dim * kTile),
      d_out(queries * dim),
      delta(queries),
      d_query_rows(queries * dim),
      d_key_rows(keys * dim),
      rows(kind),
      row_sums(kind == Rows::kSelfFromSum ? static_cast<size_t>(queries) : 0),
      factors(kind == Rows::kFactored ? queries : 0),
      factored_d_out(kind == Rows::kFactored ? queries * dim : 0),
      row_products(kind == Rows::kFactored ? static_cast<size_t>(queries) : 0),
      products_(kTile * kTile) {
  std::fill(d_query_rows.data(), d_query_rows.at(queries * dim), 0.0f);
  std::fill(d_key_rows.data(), d_key_rows.at(keys * dim), 0.0f);
}

void GradientSweep::AddValueGradients(const TileRange& tile,
                                      const float* weights,
                                      float* d_values) const {
  AddTransposed(tile, weights, value_gradients(), d_values);
}

// Row i of the tile in `d_scores`: G_i . values_j on entry, dS_ij on return.
void GradientSweep::ScoreGradientRow(const TileRange& tile, int64_t i,
                                     const float* weights, float* d_scores) {
  const int64_t query = tile.row + i;
  const size_t row = static_cast<size_t>(query);
  float factor = 1;
  if (rows == Rows::kFactored) {
    factor = *factors.at(query);
    row_products[row] += static_cast<double>(LaneSum(
        tile.columns, [&](int64_t j) { return weights[j] * d_scores[j]; }));
  }
  const float shift = *delta.at(query);
#pragma omp simd
  for (int64_t j = 0; j < tile.columns; ++j) {
    d_scores[j] = weights[j] * (factor * d_scores[j] - shift);
  }
  if (rows != Rows::kSelfFromSum) return;
  const int64_t self = query - tile.column;
  if (own_keys && self >= 0 && self < tile.columns) d_scores[self] = 0;
  row_sums[row] += static_cast<double>(
      LaneSum(tile.columns, [&](int64_t j) { return d_scores[j]; }));
}

void GradientSweep::AddScoreGradients(const TileRange& tile,
                                      const float* weights) {
  const int64_t dim = head.head_dim;
  const int64_t block = tile.column / kTile;
  float* d_scores = products_.data();
  Sgemm(false, false, tile.rows, tile.columns, dim, 1.0f,
        d_out.at(tile.row * dim), dim,
        value_blocks.at(block * dim * kTile + tile.column % kTile), kTile, 0.0f,
        d_scores, kTile);
  for (int64_t i = 0; i < tile.rows; ++i) {
    ScoreGradientRow(tile, i, weights + i * kTile, d_scores + i * kTile);
  }
  Sgemm(true, false, tile.columns, dim, tile.rows, 1.0f, d_scores, kTile,
        head.query_rows.at(tile.row * dim), dim, 1.0f,
        d_key_rows.at(tile.column * dim), dim);
  Sgemm(false, false, tile.rows, dim, tile.columns, 1.0f, d_scores, kTile,
        key_rows.at(tile.column * dim), dim, 1.0f,
        d_query_rows.at(tile.row * dim), dim);
}

void GradientSweep::AddSelfGradients() {
  const int64_t dim = head.head_dim;
  for (int64_t i = 0; i < head.num_queries; ++i) {
    const float d_self = static_cast<float>(-row_sums[static_cast<size_t>(i)]);
    const float* query = head.query_rows.at(i * dim);
    const float* key = key_rows.at(i * dim);
    float* d_query = d_query_rows.at(i * dim);
    float* d_key = d_key_rows.at(i * dim);
    for (int64_t c = 0; c < dim; ++c) d_query[c] += d_self * key[c];
    for (int64_t c = 0; c < dim; ++c) d_key[c] += d_self * query[c];
  }
}

}  // namespace cubit
