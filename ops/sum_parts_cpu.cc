// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cstdint>

#include "ops/pieces.h"
#include "ops/sum_parts.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

struct Terms {
  const float* parts;
  const float* bias;      // or null
  const float* residual;  // or null
  int64_t num_parts;
  int64_t count;  // of a part
};

// The row of `width` elements from `begin`. A block's sums are held aside,
// since y may be the residual.
void SumRow(const Terms& terms, int64_t begin, int64_t width, float* y) {
  constexpr int64_t kBlock = 256;
  float sums[kBlock];
  for (int64_t column = 0; column < width; column += kBlock) {
    const int64_t count = std::min(kBlock, width - column);
    const int64_t first = begin + column;
    const auto add = [&](const float* term) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) sums[i] += term[i];
    };
    std::fill_n(sums, count, 0.0f);
    for (int64_t p = 0; p < terms.num_parts; ++p) {
      add(terms.parts + p * terms.count + first);
    }
    if (terms.bias != nullptr) add(terms.bias + column);
    if (terms.residual != nullptr) add(terms.residual + first);
    std::copy_n(sums, count, y + first);
  }
}

}  // namespace

void SumParts(ConstTensor parts, ConstTensor bias, ConstTensor residual,
              Tensor y, Stream&) {
  const int64_t num_rows = y.dim(0);
  const int64_t width = y.dim(1);
  CUBIT_CHECK_GE(parts.dim(0), 1);
  CUBIT_CHECK_SHAPE(parts, {parts.dim(0), num_rows, width});
  if (!bias.empty()) CUBIT_CHECK_SHAPE(bias, {width});
  if (!residual.empty()) CUBIT_CHECK_SHAPE(residual, {num_rows, width});
  Terms terms;
  terms.parts = parts.data<float>();
  terms.bias = bias.empty() ? nullptr : bias.data<float>();
  terms.residual = residual.empty() ? nullptr : residual.data<float>();
  terms.num_parts = parts.dim(0);
  terms.count = num_rows * width;
  float* y_data = y.data<float>();
  ParallelFor(num_rows, RowsPerPiece(width * (terms.num_parts + 1)),
              [=](int64_t begin, int64_t end) {
                for (int64_t n = begin; n < end; ++n) {
                  SumRow(terms, n * width, width, y_data);
                }
              });
}

}  // namespace cubit
