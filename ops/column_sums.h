// SPDX-License-Identifier: Apache-2.0
//
// Sums over rows on the CPU: the gradients of what every row shares.

#ifndef CUBIT_OPS_COLUMN_SUMS_H_
#define CUBIT_OPS_COLUMN_SUMS_H_

#include <cstdint>

#include "ops/pieces.h"
#include "runtime/thread_pool.h"

namespace cubit {

// sums[i] += sum over n < num_rows of x[n * row_stride + i], i < num_columns,
// each column in the order of n.
inline void AddColumnSums(const float* x, int64_t num_rows, int64_t num_columns,
                          int64_t row_stride, float* sums) {
  ParallelFor(num_columns, kPieceColumns, [=](int64_t begin, int64_t end) {
    double of_piece[kPieceColumns] = {};
    const int64_t count = end - begin;
    for (int64_t n = 0; n < num_rows; ++n) {
      const float* row = x + n * row_stride + begin;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        of_piece[i] += static_cast<double>(row[i]);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      sums[begin + i] = static_cast<float>(
          static_cast<double>(sums[begin + i]) + of_piece[i]);
    }
  });
}

}  // namespace cubit

#endif  // CUBIT_OPS_COLUMN_SUMS_H_
