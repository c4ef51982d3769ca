// SPDX-License-Identifier: Apache-2.0

#include "ops/triangular_block.h"

#include <algorithm>

#include "ops/blas.h"
#include "runtime/check.h"

namespace cubit {
namespace {

// Rows solved by substitution; between sub-blocks of this size products take
// over. Small, because substitution is bound by the latency of a chain.
constexpr int64_t kSubBlock = 16;
// Columns that one chain of substitutions carries in registers.
constexpr int64_t kChunk = 32;

// Row i minus the rows that `first`, `step` and `count` name, each times its
// entry of N: x_i -= sum_m n[m] x_{first + m}.
template <int64_t kColumns>
inline void SubtractRows(const float* n, int64_t n_step, int64_t count,
                         const float* others, int64_t columns, float* row) {
  float sum[kColumns];
  for (int64_t c = 0; c < kColumns; ++c) sum[c] = row[c];
  for (int64_t m = 0; m < count; ++m) {
    const float factor = n[m * n_step];
    const float* other = others + m * columns;
    for (int64_t c = 0; c < kColumns; ++c) sum[c] -= factor * other[c];
  }
  for (int64_t c = 0; c < kColumns; ++c) row[c] = sum[c];
}

// Substitution inside a sub-block, on columns [c, c + kColumns).
template <int64_t kColumns>
void SubstituteForward(const float* n, int64_t stride, int64_t rows,
                       int64_t columns, float* x) {
  for (int64_t i = 1; i < rows; ++i) {
    SubtractRows<kColumns>(n + i * stride, 1, i, x, columns, x + i * columns);
  }
}

template <int64_t kColumns>
void SubstituteBackward(const float* n, int64_t stride, int64_t rows,
                        int64_t columns, float* x) {
  for (int64_t i = rows - 2; i >= 0; --i) {
    SubtractRows<kColumns>(n + (i + 1) * stride + i, stride, rows - 1 - i,
                           x + (i + 1) * columns, columns, x + i * columns);
  }
}

}  // namespace

void SolveUnitLower(const float* n, int64_t stride, int64_t rows,
                    int64_t columns, float* x) {
  CUBIT_CHECK_GE(stride, rows);
  for (int64_t begin = 0; begin < rows; begin += kSubBlock) {
    const int64_t count = std::min(kSubBlock, rows - begin);
    float* block = x + begin * columns;
    if (begin > 0) {
      Sgemm(false, false, count, columns, begin, -1.0f, n + begin * stride,
            stride, x, columns, 1.0f, block, columns);
    }
    const float* diagonal = n + begin * stride + begin;
    int64_t c = 0;
    for (; c + kChunk <= columns; c += kChunk) {
      SubstituteForward<kChunk>(diagonal, stride, count, columns, block + c);
    }
    for (; c + 8 <= columns; c += 8) {
      SubstituteForward<8>(diagonal, stride, count, columns, block + c);
    }
    for (; c < columns; ++c) {
      SubstituteForward<1>(diagonal, stride, count, columns, block + c);
    }
  }
}

void SolveUnitLowerTransposed(const float* n, int64_t stride, int64_t rows,
                              int64_t columns, float* x) {
  CUBIT_CHECK_GE(stride, rows);
  const int64_t last = rows == 0 ? -1 : (rows - 1) / kSubBlock * kSubBlock;
  for (int64_t begin = last; begin >= 0; begin -= kSubBlock) {
    const int64_t end = std::min(begin + kSubBlock, rows);
    float* block = x + begin * columns;
    if (end < rows) {
      Sgemm(true, false, end - begin, columns, rows - end, -1.0f,
            n + end * stride + begin, stride, x + end * columns, columns, 1.0f,
            block, columns);
    }
    const float* diagonal = n + begin * stride + begin;
    const int64_t count = end - begin;
    int64_t c = 0;
    for (; c + kChunk <= columns; c += kChunk) {
      SubstituteBackward<kChunk>(diagonal, stride, count, columns, block + c);
    }
    for (; c + 8 <= columns; c += 8) {
      SubstituteBackward<8>(diagonal, stride, count, columns, block + c);
    }
    for (; c < columns; ++c) {
      SubstituteBackward<1>(diagonal, stride, count, columns, block + c);
    }
  }
}

}  // namespace cubit
