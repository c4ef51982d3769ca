// SPDX-License-Identifier: Apache-2.0
//
// The triangular systems of KRR and Delta, one head, streamed by blocks. Both
// read
//   X_i + g_i sum_{j<i} E_ij X_j = b_i,   E_ij = exp(S_ij - shift_i),
// with Z_i = sum_j E_ij over the visible keys:
//   KRR    g_i = 1 / (E_ii + lambda Z_i),  b_i = g_i Z_i value_scale_i V_i
//   Delta  g_i = beta_i / Z_i,             b_i = V_i
// so that the softmax is never normalised. This is attention whose values are
// its own outputs: row block by row block, first the keys before the block
// (tile_sweep.h), then a unit lower-triangular block (triangular_block.h).

#ifndef CUBIT_OPS_BLOCK_SOLVE_H_
#define CUBIT_OPS_BLOCK_SOLVE_H_

#include <cstdint>

#include "absl/functional/function_ref.h"

#include "ops/score_tile.h"
#include "ops/tile_sweep.h"

namespace cubit {

// Row i of the system from E_ii (0 where a query does not see its own key) and
// Z_i: writes b_i [K], returns g_i.
using RowEquation = absl::FunctionRef<float(int64_t row, float self_weight,
                                            double sum, float* rhs)>;

// Begins the sums of rows [row, row + rows): Start, and what keys that are not
// among the columns gave.
using RowStart =
    absl::FunctionRef<void(int64_t row, int64_t rows, SoftmaxRows* sums)>;

// Solves rows [first_row, T) of x [T, K]; rows before are taken as solved.
//   lse [T]: rows from first_row on are written.
//   kernel_x [T, K], or null: so are sum_j E_ij X_j / Z_i, over all keys that
//   the row sees; 0 where it sees none.
void SolveRows(const ScoreHead& head, const VisibleKeys& keys, RowStart start,
               int64_t first_row, RowEquation equation, float* x, float* lse,
               float* kernel_x);

// Solves rows [first_row, T) of x [T, K]; rows before are taken as solved.
//   shift [T]: S_ii, where it is known to be the row's largest score (then
//   E_ii = 1 exactly); null for the running maximum.
//   lse [T]: rows from first_row on are written.
void SolveHead(const ScoreHead& head, const VisibleKeys& keys,
               const float* shift, int64_t first_row, RowEquation equation,
               float* x, float* lse);

// What the transposed system of a caller consists of. With P = softmax(S), the
// strictly lower part of the system's matrix is
// N_ij = row_factor_i P_ij, and U solves (I + N)^T U = d_x.
struct AdjointSystem {
  // row_factor_i from P_ii.
  absl::FunctionRef<float(int64_t row, float self_weight)> row_factor;
  // Called when row i of U [K] is known, last block first: fills row i of
  // d_out, delta and factored_d_out of the sweep.
  absl::FunctionRef<void(int64_t row, float self_weight, const float* u)>
      solved;
};

// The transposed system alone. `gradients` [T, K] are f G of the rows
// (tile_sweep.h), which system.solved fills; `visit` is called for every tile
// with its P once its rows are solved. `u` [T, K] holds d_x on entry and U on
// return.
using TileVisit =
    absl::FunctionRef<void(const TileRange& tile, const float* weights)>;
void SolveRowsAdjoint(const KeptSoftmax& kernel, const VisibleKeys& keys,
                      const AdjointSystem& system, const float* gradients,
                      TileVisit visit, float* u);

// One sweep from the last block of keys to the first. `u` [T, K] holds d_x on
// entry and U on return; the sweep's sums are complete on return.
void SolveHeadAdjoint(const VisibleKeys& keys, const AdjointSystem& system,
                      GradientSweep* sweep, float* u);

}  // namespace cubit

#endif  // CUBIT_OPS_BLOCK_SOLVE_H_
