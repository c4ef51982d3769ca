// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cstdint>

#include "ops/elementwise.h"
#include "ops/pieces.h"
#include "ops/reduction.h"
#include "runtime/bfloat16.h"
#include "runtime/thread_pool.h"

namespace cubit {

void Add(ConstTensor a, ConstTensor b, Tensor y, Stream&) {
  CUBIT_CHECK_EQ(a.shape(), b.shape());
  CUBIT_CHECK_EQ(a.shape(), y.shape());
  const float* a_data = a.data<float>();
  const float* b_data = b.data<float>();
  float* y_data = y.data<float>();
  ParallelFor(a.num_elements(), kPieceElements,
              [=](int64_t begin, int64_t end) {
#pragma omp simd
                for (int64_t i = begin; i < end; ++i) {
                  y_data[i] = a_data[i] + b_data[i];
                }
              });
}

void AddInPlace(ConstTensor x, Tensor y, Stream& stream) {
  Add(x, y, y, stream);
}

void ScaleInPlace(float factor, Tensor x, Stream&) {
  float* x_data = x.data<float>();
  ParallelFor(x.num_elements(), kPieceElements,
              [=](int64_t begin, int64_t end) {
#pragma omp simd
                for (int64_t i = begin; i < end; ++i) x_data[i] *= factor;
              });
}

void Convert(ConstTensor x, Tensor y, Stream& stream) {
  CUBIT_CHECK_EQ(x.shape(), y.shape());
  const int64_t count = x.num_elements();
  if (x.dtype() == y.dtype()) {
    CopyOnDevice(y.raw(), x.raw(), x.size_bytes(), stream);
  } else if (x.dtype() == DType::kFloat32) {
    const float* x_data = x.data<float>();
    BFloat16* y_data = y.data<BFloat16>();
    ParallelFor(count, kPieceElements, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y_data[i] = ToBFloat16(x_data[i]);
    });
  } else {
    const BFloat16* x_data = x.data<BFloat16>();
    float* y_data = y.data<float>();
    ParallelFor(count, kPieceElements, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y_data[i] = ToFloat(x_data[i]);
    });
  }
}

void SumOfSquares(ConstTensor x, Tensor result, Stream&) {
  CUBIT_CHECK_EQ(result.num_elements(), 1);
  // At most so many pieces, so that their sums fit on the stack.
  constexpr int64_t kMaxPieces = 256;
  const int64_t count = x.num_elements();
  const int64_t grain =
      std::max(kPieceElements, (count + kMaxPieces - 1) / kMaxPieces);
  const float* x_data = x.data<float>();
  double sums[kMaxPieces] = {};
  ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
    sums[begin / grain] = FixedOrderSum(end - begin, [=](int64_t i) {
      const double value = static_cast<double>(x_data[begin + i]);
      return value * value;
    });
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  *result.data<double>() = total;
}

}  // namespace cubit
