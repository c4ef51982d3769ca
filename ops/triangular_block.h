// SPDX-License-Identifier: Apache-2.0
//
// The one dense solve inside the streamed KRR and Delta solvers: a unit
// lower-triangular block of at most kTile rows, and its transpose.

#ifndef CUBIT_OPS_TRIANGULAR_BLOCK_H_
#define CUBIT_OPS_TRIANGULAR_BLOCK_H_

#include <cstdint>

namespace cubit {

// Solves (I + N) X = B in place: x [rows, columns], contiguous, holds B on
// entry and X on return. `n` [rows, rows] with row stride `stride`; only
// entries below the diagonal are read. n and x may not overlap.
// Sub-blocks of 16 rows: substitution inside, products by sgemm between them.
void SolveUnitLower(const float* n, int64_t stride, int64_t rows,
                    int64_t columns, float* x);

// Solves (I + N)^T X = B likewise, last row to first.
void SolveUnitLowerTransposed(const float* n, int64_t stride, int64_t rows,
                              int64_t columns, float* x);

}  // namespace cubit

#endif  // CUBIT_OPS_TRIANGULAR_BLOCK_H_
