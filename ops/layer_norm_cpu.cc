// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstdint>

#include "ops/column_sums.h"
#include "ops/layer_norm.h"
#include "ops/pieces.h"
#include "ops/reduction.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

struct RowStatistics {
  float mean;
  float rstd;
};

// The variance is that about the rounded mean, with which the row is
// normalised.
RowStatistics ComputeStatistics(const float* x, int64_t dim, float eps) {
  const double count = static_cast<double>(dim);
  const float mean = static_cast<float>(
      FixedOrderSum(dim, [=](int64_t i) { return x[i]; }) / count);
  const double variance = FixedOrderSum(dim,
                                        [=](int64_t i) {
                                          const double d =
                                              static_cast<double>(x[i] - mean);
                                          return d * d;
                                        }) /
                          count;
  return {mean, static_cast<float>(
                    1.0 / std::sqrt(variance + static_cast<double>(eps)))};
}

void NormalizeRow(const float* x, const float* weight, const float* bias,
                  RowStatistics row, int64_t dim, float* y) {
  if (bias == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) {
      y[i] = (x[i] - row.mean) * row.rstd * weight[i];
    }
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) {
    y[i] = (x[i] - row.mean) * row.rstd * weight[i] + bias[i];
  }
}

// d_x += rstd (g - mean(g) - h mean(g h)), g = d_y weight, h normalised x.
void AddInputGradientOfRow(const float* d_y, const float* x,
                           const float* weight, RowStatistics row, int64_t dim,
                           float* d_x) {
  const double count = static_cast<double>(dim);
  const float mean_g = static_cast<float>(
      FixedOrderSum(dim, [=](int64_t i) { return d_y[i] * weight[i]; }) /
      count);
  const float mean_gh =
      static_cast<float>(FixedOrderSum(dim,
                                       [=](int64_t i) {
                                         return d_y[i] * weight[i] *
                                                ((x[i] - row.mean) * row.rstd);
                                       }) /
                         count);
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) {
    const float h = (x[i] - row.mean) * row.rstd;
    d_x[i] += row.rstd * (d_y[i] * weight[i] - mean_g - h * mean_gh);
  }
}

struct BackwardInputs {
  const float* d_y;
  const float* x;
  const float* mean;
  const float* rstd;
  int64_t num_rows;
  int64_t dim;
};

// Adds sum over n of d_y h to d_weight and of d_y to d_bias, in the order of n,
// for columns [begin, begin + count).
void AddParameterGradients(const BackwardInputs& in, int64_t begin,
                           int64_t count, float* d_weight, float* d_bias) {
  double weight_sums[kPieceColumns] = {};
  double bias_sums[kPieceColumns] = {};
  for (int64_t n = 0; n < in.num_rows; ++n) {
    const float* d_y = in.d_y + n * in.dim + begin;
    const float* x = in.x + n * in.dim + begin;
    const float mean = in.mean[n];
    const float rstd = in.rstd[n];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      weight_sums[i] += static_cast<double>(d_y[i] * ((x[i] - mean) * rstd));
      bias_sums[i] += static_cast<double>(d_y[i]);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    float& weight = d_weight[begin + i];
    weight = static_cast<float>(static_cast<double>(weight) + weight_sums[i]);
  }
  if (d_bias == nullptr) return;
  for (int64_t i = 0; i < count; ++i) {
    float& bias = d_bias[begin + i];
    bias = static_cast<float>(static_cast<double>(bias) + bias_sums[i]);
  }
}

}  // namespace

void LayerNormForward(ConstTensor x, ConstTensor weight, ConstTensor bias,
                      float eps, Tensor y, Tensor mean, Tensor rstd, Stream&) {
  const int64_t num_rows = x.dim(0);
  const int64_t dim = x.dim(1);
  CUBIT_CHECK_SHAPE(weight, {dim});
  if (!bias.empty()) CUBIT_CHECK_SHAPE(bias, {dim});
  CUBIT_CHECK_SHAPE(y, {num_rows, dim});
  CUBIT_CHECK_SHAPE(mean, {num_rows});
  CUBIT_CHECK_SHAPE(rstd, {num_rows});
  const float* x_data = x.data<float>();
  const float* weight_data = weight.data<float>();
  const float* bias_data = bias.data<float>();
  float* y_data = y.data<float>();
  float* mean_data = mean.data<float>();
  float* rstd_data = rstd.data<float>();
  ParallelFor(num_rows, RowsPerPiece(dim), [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* row = x_data + n * dim;
      const RowStatistics statistics = ComputeStatistics(row, dim, eps);
      NormalizeRow(row, weight_data, bias_data, statistics, dim,
                   y_data + n * dim);
      mean_data[n] = statistics.mean;
      rstd_data[n] = statistics.rstd;
    }
  });
}

// The parameters are those of the contract.
// NOLINTNEXTLINE(readability-function-size)
void LayerNormBackward(ConstTensor d_y, ConstTensor x, ConstTensor weight,
                       ConstTensor mean, ConstTensor rstd, Tensor d_x,
                       Tensor d_weight, Tensor d_bias, Tensor d_x_sums,
                       Stream&) {
  const int64_t num_rows = x.dim(0);
  const int64_t dim = x.dim(1);
  CUBIT_CHECK_SHAPE(d_y, {num_rows, dim});
  CUBIT_CHECK_SHAPE(weight, {dim});
  CUBIT_CHECK_SHAPE(mean, {num_rows});
  CUBIT_CHECK_SHAPE(rstd, {num_rows});
  CUBIT_CHECK_SHAPE(d_x, {num_rows, dim});
  CUBIT_CHECK_SHAPE(d_weight, {dim});
  if (!d_bias.empty()) CUBIT_CHECK_SHAPE(d_bias, {dim});
  if (!d_x_sums.empty()) CUBIT_CHECK_SHAPE(d_x_sums, {dim});
  const BackwardInputs in = {d_y.data<float>(),  x.data<float>(),
                             mean.data<float>(), rstd.data<float>(),
                             num_rows,           dim};
  const float* weight_data = weight.data<float>();
  float* d_x_data = d_x.data<float>();
  ParallelFor(num_rows, RowsPerPiece(dim), [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      AddInputGradientOfRow(in.d_y + n * dim, in.x + n * dim, weight_data,
                            {in.mean[n], in.rstd[n]}, dim, d_x_data + n * dim);
    }
  });
  float* d_weight_data = d_weight.data<float>();
  float* d_bias_data = d_bias.data<float>();
  ParallelFor(dim, kPieceColumns, [=](int64_t begin, int64_t end) {
    AddParameterGradients(in, begin, end - begin, d_weight_data, d_bias_data);
  });
  if (d_x_sums.empty()) return;
  AddColumnSums(d_x_data, num_rows, dim, dim, d_x_sums.data<float>());
}

}  // namespace cubit
