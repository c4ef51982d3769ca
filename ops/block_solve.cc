// SPDX-License-Identifier: Apache-2.0

#include "ops/block_solve.h"

#include <algorithm>

#include "ops/triangular_block.h"

namespace cubit {
namespace {

// Adds to `sums` what the keys before `row_begin` contribute.
void StreamSolvedKeys(const ScoreHead& head, const VisibleKeys& keys,
                      TileRange tile, const float* x, SoftmaxRows* sums,
                      float* weights) {
  const int64_t row_begin = tile.row;
  const int64_t first_tile = keys.Of(row_begin).begin / kTile * kTile;
  for (int64_t column = first_tile; column < row_begin; column += kTile) {
    tile.column = column;
    tile.columns = std::min(kTile, row_begin - column);
    sums->Weigh(head, keys, tile, weights);
    sums->AddValues(tile, weights, x + column * head.head_dim);
  }
}

// Makes the unit lower-triangular block `n` of a diagonal tile of E, and its
// right-hand side in x.
void FormBlock(const TileRange& tile, int64_t head_dim, const SoftmaxRows& sums,
               RowEquation equation, const float* weights, float* n, float* x,
               float* lse) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t row = tile.row + i;
    const float* e = weights + i * kTile;
    float* rhs = x + row * head_dim;
    const float g = equation(row, e[i], sums.sum(i), rhs);
    const float* weighted = sums.weighted(i);
    for (int64_t c = 0; c < head_dim; ++c) rhs[c] -= g * weighted[c];
    for (int64_t j = 0; j < i; ++j) n[i * kTile + j] = g * e[j];
    lse[row] = sums.LogSumExp(i);
  }
}

// kernel_x [tile.rows, K] from sums over all keys.
void AverageRows(const TileRange& tile, int64_t head_dim,
                 const SoftmaxRows& sums, float* kernel_x) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const double sum = sums.sum(i);
    const float inverse = sum == 0 ? 0.0f : static_cast<float>(1.0 / sum);
    const float* weighted = sums.weighted(i);
    float* row = kernel_x + i * head_dim;
    for (int64_t c = 0; c < head_dim; ++c) row[c] = inverse * weighted[c];
  }
}

}  // namespace

void SolveRows(const ScoreHead& head, const VisibleKeys& keys, RowStart start,
               int64_t first_row, RowEquation equation, float* x, float* lse,
               float* kernel_x) {
  const int64_t dim = head.head_dim;
  SoftmaxRows sums(dim);
  Floats weights(kTile * kTile);
  Floats block(kTile * kTile);
  int64_t end = 0;
  for (int64_t begin = first_row; begin < head.num_queries; begin = end) {
    end = std::min(head.num_queries, (begin / kTile + 1) * kTile);
    const TileRange diagonal = {begin, end - begin, begin, end - begin};
    float* solution = x + begin * dim;
    start(begin, diagonal.rows, &sums);
    StreamSolvedKeys(head, keys, diagonal, x, &sums, weights.data());
    sums.Weigh(head, keys, diagonal, weights.data());
    FormBlock(diagonal, dim, sums, equation, weights.data(), block.data(), x,
              lse);
    SolveUnitLower(block.data(), kTile, diagonal.rows, dim, solution);
    if (kernel_x == nullptr) continue;
    sums.AddValues(diagonal, weights.data(), solution);
    AverageRows(diagonal, dim, sums, kernel_x + begin * dim);
  }
}

void SolveHead(const ScoreHead& head, const VisibleKeys& keys,
               const float* shift, int64_t first_row, RowEquation equation,
               float* x, float* lse) {
  const auto start = [shift](int64_t row, int64_t rows, SoftmaxRows* sums) {
    sums->Start(rows, shift == nullptr ? nullptr : shift + row);
  };
  SolveRows(head, keys, start, first_row, equation, x, lse, nullptr);
}

void SolveRowsAdjoint(const KeptSoftmax& kernel, const VisibleKeys& keys,
                      const AdjointSystem& system, const float* gradients,
                      TileVisit visit, float* u) {
  const int64_t num_rows = kernel.head.num_queries;
  const int64_t dim = kernel.head.head_dim;
  Floats weights(kTile * kTile);
  Floats block(kTile * kTile);
  for (int64_t begin = (NumTiles(num_rows) - 1) * kTile; begin >= 0;
       begin -= kTile) {
    TileRange tile = {begin, std::min(kTile, num_rows - begin), begin,
                      std::min(kTile, num_rows - begin)};
    const TileRange diagonal = tile;
    for (tile.row = begin + kTile; tile.row < num_rows; tile.row += kTile) {
      tile.rows = std::min(kTile, num_rows - tile.row);
      if (!keys.Touches(tile)) break;  // later documents are further still
      kernel.Weights(keys, tile, weights.data());
      kernel.AddTransposed(tile, weights.data(), gradients, u + begin * dim);
      visit(tile, weights.data());
    }
    kernel.Weights(keys, diagonal, weights.data());
    for (int64_t i = 0; i < diagonal.rows; ++i) {
      const float* p = weights.at(i * kTile);
      const float factor = system.row_factor(begin + i, p[i]);
      for (int64_t j = 0; j < i; ++j) *block.at(i * kTile + j) = factor * p[j];
    }
    SolveUnitLowerTransposed(block.data(), kTile, diagonal.rows, dim,
                             u + begin * dim);
    for (int64_t i = 0; i < diagonal.rows; ++i) {
      system.solved(begin + i, *weights.at(i * kTile + i),
                    u + (begin + i) * dim);
    }
    visit(diagonal, weights.data());
  }
}

void SolveHeadAdjoint(const VisibleKeys& keys, const AdjointSystem& system,
                      GradientSweep* sweep, float* u) {
  const auto visit = [sweep](const TileRange& tile, const float* weights) {
    sweep->AddScoreGradients(tile, weights);
  };
  SolveRowsAdjoint(*sweep, keys, system, sweep->value_gradients(), visit, u);
}

}  // namespace cubit
