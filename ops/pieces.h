// SPDX-License-Identifier: Apache-2.0
//
// How the CPU ops cut their loops for ParallelFor: by shape alone, into pieces
// that are long beside the cost of handing one to a thread.

#ifndef CUBIT_OPS_PIECES_H_
#define CUBIT_OPS_PIECES_H_

#include <algorithm>
#include <cstdint>

namespace cubit {

// Elements of one piece of an elementwise pass: about 5 microseconds of work,
// and 64 KiB of each operand.
constexpr int64_t kPieceElements = 16384;

// Columns of one piece of a pass that sums over rows: four cache lines of every
// row, which the hardware still prefetches well.
constexpr int64_t kPieceColumns = 64;

// Rows of `row_elements` elements that make a piece.
constexpr int64_t RowsPerPiece(int64_t row_elements) {
  return std::max<int64_t>(1,
                           kPieceElements / std::max<int64_t>(1, row_elements));
}

}  // namespace cubit

#endif  // CUBIT_OPS_PIECES_H_
