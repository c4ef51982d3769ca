// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstdint>

#include "ops/column_sums.h"
#include "ops/pieces.h"
#include "ops/reduction.h"
#include "ops/rms_norm.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

// 1 / sqrt(mean(x^2) + eps).
float ReciprocalRms(const float* x, int64_t dim, float eps) {
  const double squares = FixedOrderSum(dim, [=](int64_t i) {
    return static_cast<double>(x[i]) * static_cast<double>(x[i]);
  });
  return static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(dim) +
                                            static_cast<double>(eps)));
}

// d_x += rstd (g - h mean(g h)), g = d_y weight, h = x rstd.
void AddInputGradientOfRow(const float* d_y, const float* x,
                           const float* weight, float rstd, int64_t dim,
                           float* d_x) {
  const float mean = static_cast<float>(
      FixedOrderSum(
          dim, [=](int64_t i) { return d_y[i] * weight[i] * (x[i] * rstd); }) /
      static_cast<double>(dim));
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) {
    d_x[i] += rstd * (d_y[i] * weight[i] - x[i] * rstd * mean);
  }
}

struct BackwardInputs {
  const float* d_y;
  const float* x;
  const float* rstd;
  int64_t num_rows;
  int64_t dim;
};

// Adds sum over n of d_y h to d_weight, in the order of n, for columns [begin,
// begin + count).
void AddWeightGradient(const BackwardInputs& in, int64_t begin, int64_t count,
                       float* d_weight) {
  double sums[kPieceColumns] = {};
  for (int64_t n = 0; n < in.num_rows; ++n) {
    const float* d_y = in.d_y + n * in.dim + begin;
    const float* x = in.x + n * in.dim + begin;
    const float rstd = in.rstd[n];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      sums[i] += static_cast<double>(d_y[i] * (x[i] * rstd));
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    float& weight = d_weight[begin + i];
    weight = static_cast<float>(static_cast<double>(weight) + sums[i]);
  }
}

}  // namespace

void RmsNormForward(ConstTensor x, ConstTensor weight, float eps, Tensor y,
                    Tensor rstd, Stream&) {
  const int64_t num_rows = x.dim(0);
  const int64_t dim = x.dim(1);
  CUBIT_CHECK_SHAPE(weight, {dim});
  CUBIT_CHECK_SHAPE(y, {num_rows, dim});
  CUBIT_CHECK_SHAPE(rstd, {num_rows});
  const float* x_data = x.data<float>();
  const float* weight_data = weight.data<float>();
  float* y_data = y.data<float>();
  float* rstd_data = rstd.data<float>();
  ParallelFor(num_rows, RowsPerPiece(dim), [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* row = x_data + n * dim;
      float* out = y_data + n * dim;
      const float scale = ReciprocalRms(row, dim, eps);
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i)
        out[i] = row[i] * scale * weight_data[i];
      rstd_data[n] = scale;
    }
  });
}

void RmsNormBackward(ConstTensor d_y, ConstTensor x, ConstTensor weight,
                     ConstTensor rstd, Tensor d_x, Tensor d_weight,
                     Tensor d_x_sums, Stream&) {
  const int64_t num_rows = x.dim(0);
  const int64_t dim = x.dim(1);
  CUBIT_CHECK_SHAPE(d_y, {num_rows, dim});
  CUBIT_CHECK_SHAPE(weight, {dim});
  CUBIT_CHECK_SHAPE(rstd, {num_rows});
  CUBIT_CHECK_SHAPE(d_x, {num_rows, dim});
  CUBIT_CHECK_SHAPE(d_weight, {dim});
  if (!d_x_sums.empty()) CUBIT_CHECK_SHAPE(d_x_sums, {dim});
  const BackwardInputs in = {d_y.data<float>(), x.data<float>(),
                             rstd.data<float>(), num_rows, dim};
  const float* weight_data = weight.data<float>();
  float* d_x_data = d_x.data<float>();
  ParallelFor(num_rows, RowsPerPiece(dim), [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      AddInputGradientOfRow(in.d_y + n * dim, in.x + n * dim, weight_data,
                            in.rstd[n], dim, d_x_data + n * dim);
    }
  });
  float* d_weight_data = d_weight.data<float>();
  ParallelFor(dim, kPieceColumns, [=](int64_t begin, int64_t end) {
    AddWeightGradient(in, begin, end - begin, d_weight_data);
  });
  if (d_x_sums.empty()) return;
  AddColumnSums(d_x_data, num_rows, dim, dim, d_x_sums.data<float>());
}

}  // namespace cubit
