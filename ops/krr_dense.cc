// SPDX-License-Identifier: Apache-2.0

#include "ops/krr_dense.h"

#include <algorithm>
#include <cmath>

#include "cblas.h"

#include "ops/reduction.h"
#include "ops/score_tile.h"
#include "runtime/check.h"

// Of LAPACK, which OpenBLAS brings without a C header in Debian's package.
// NOLINTBEGIN(readability-identifier-naming)
extern "C" {
void dgetrf_(const int* m, const int* n, double* a, const int* lda, int* pivots,
             int* info);
void dgetrs_(const char* trans, const int* n, const int* num_columns,
             const double* a, const int* lda, const int* pivots, double* b,
             const int* ldb, int* info);
}
// NOLINTEND(readability-identifier-naming)

namespace cubit {
namespace {

double Dot(const float* a, const float* b, int64_t dim) {
  return FixedOrderSum(dim, [a, b](int64_t c) {
    return static_cast<double>(a[c]) * static_cast<double>(b[c]);
  });
}

// As in blas.cc: heads run side by side, and LAPACK must not add threads.
bool UseOneThread() {
  openblas_set_num_threads(1);
  return true;
}

size_t Index(int64_t row, int64_t columns, int64_t column) {
  return static_cast<size_t>(row * columns + column);
}

}  // namespace

DenseKrr::DenseKrr(const ConstHeadTensor& r, const float* column_scale,
                   double lambda, const AttentionMask& mask, int64_t b,
                   int64_t h)
    : b_(b),
      h_(h),
      num_rows_(r.seq_len),
      p_(Index(num_rows_, num_rows_, 0)),
      lse_(static_cast<size_t>(num_rows_)),
      pivots_(static_cast<size_t>(num_rows_)) {
  static const bool one_thread = UseOneThread();
  CUBIT_CHECK(one_thread);
  const VisibleKeys keys(mask, b, num_rows_, num_rows_, /*strict=*/false);
  for (int64_t i = 0; i < num_rows_; ++i) {
    const VisibleKeys::Interval seen = keys.Of(i);
    double* row = p_.data() + i * num_rows_;
    for (int64_t j = seen.begin; j < seen.end; ++j) {
      row[j] = Dot(r.row<float>(b, i, h), r.row<float>(b, j, h), r.head_dim) *
               static_cast<double>(column_scale[j]);
    }
    const double maximum = *std::max_element(row + seen.begin, row + seen.end);
    double sum = 0;
    for (int64_t j = seen.begin; j < seen.end; ++j) {
      row[j] = std::exp(row[j] - maximum);
      sum += row[j];
    }
    for (int64_t j = seen.begin; j < seen.end; ++j) row[j] /= sum;
    lse_[static_cast<size_t>(i)] = maximum + std::log(sum);
  }
  factors_ = p_;
  for (int64_t i = 0; i < num_rows_; ++i) {
    factors_[Index(i, num_rows_, i)] += lambda;
  }
  const int n = static_cast<int>(num_rows_);
  int info = 0;
  // Rows of L are columns for LAPACK: it factorises L^T.
  dgetrf_(&n, &n, factors_.data(), &n, pivots_.data(), &info);
  CUBIT_CHECK_EQ(info, 0) << "P + lambda I of head " << h
                          << " is singular; lambda = " << lambda;
}

void DenseKrr::Solve(bool transposed, int64_t num_columns,
                     std::vector<double>* columns) const {
  const char trans = transposed ? 'N' : 'T';
  const int n = static_cast<int>(num_rows_);
  const int count = static_cast<int>(num_columns);
  int info = 0;
  dgetrs_(&trans, &n, &count, factors_.data(), &n, pivots_.data(),
          columns->data(), &n, &info);
  CUBIT_CHECK_EQ(info, 0);
}

void DenseKrr::Forward(const ConstHeadTensor& v, const float* value_scale,
                       const HeadTensor& x, float* lse) const {
  std::vector<double> columns(Index(v.head_dim, num_rows_, 0));
  for (int64_t i = 0; i < num_rows_; ++i) {
    const float* row = v.row<float>(b_, i, h_);
    for (int64_t c = 0; c < v.head_dim; ++c) {
      columns[Index(c, num_rows_, i)] =
          static_cast<double>(value_scale[i]) * static_cast<double>(row[c]);
    }
  }
  Solve(/*transposed=*/false, v.head_dim, &columns);
  for (int64_t i = 0; i < num_rows_; ++i) {
    float* row = x.row<float>(b_, i, h_);
    for (int64_t c = 0; c < v.head_dim; ++c) {
      row[c] = static_cast<float>(columns[Index(c, num_rows_, i)]);
    }
    lse[i] = static_cast<float>(lse_[static_cast<size_t>(i)]);
  }
}

std::vector<double> DenseKrr::ScoreGradients(
    const KrrHeadBackward& in, const std::vector<double>& y) const {
  std::vector<double> d_scores(p_.size());
  for (int64_t i = 0; i < num_rows_; ++i) {
    const double* p = p_.data() + i * num_rows_;
    double* d = d_scores.data() + i * num_rows_;
    for (int64_t j = 0; j < num_rows_; ++j) {
      const float* x = in.x.row<float>(b_, j, h_);
      for (int64_t c = 0; c < in.x.head_dim; ++c) {
        d[j] -= y[Index(c, num_rows_, i)] * static_cast<double>(x[c]);
      }
    }
    const double delta =
        FixedOrderSum(num_rows_, [p, d](int64_t j) { return p[j] * d[j]; });
    for (int64_t j = 0; j < num_rows_; ++j) d[j] = p[j] * (d[j] - delta);
  }
  return d_scores;
}

double DenseKrr::Backward(const KrrHeadBackward& in) const {
  const int64_t dim = in.r.head_dim;
  std::vector<double> y(Index(dim, num_rows_, 0));
  for (int64_t i = 0; i < num_rows_; ++i) {
    const float* row = in.d_x.row<float>(b_, i, h_);
    for (int64_t c = 0; c < dim; ++c) {
      y[Index(c, num_rows_, i)] = static_cast<double>(row[c]);
    }
  }
  Solve(/*transposed=*/true, dim, &y);
  const std::vector<double> d_scores = ScoreGradients(in, y);

  double d_log_lambda = 0;
  for (int64_t i = 0; i < num_rows_; ++i) {
    const float* v = in.v.row<float>(b_, i, h_);
    const float* x = in.x.row<float>(b_, i, h_);
    const float* r = in.r.row<float>(b_, i, h_);
    float* d_v = in.d_v.row<float>(b_, i, h_);
    float* d_r = in.d_r.row<float>(b_, i, h_);
    double y_dot_v = 0;
    double d_column = 0;
    for (int64_t c = 0; c < dim; ++c) {
      const double y_c = y[Index(c, num_rows_, i)];
      double d_query = 0;
      double d_key = 0;
      for (int64_t j = 0; j < num_rows_; ++j) {
        const double r_j = in.r.row<float>(b_, j, h_)[c];
        d_query += d_scores[Index(i, num_rows_, j)] * r_j *
                   static_cast<double>(in.column_scale[j]);
        d_key += d_scores[Index(j, num_rows_, i)] * r_j;
      }
      y_dot_v += y_c * static_cast<double>(v[c]);
      d_column += static_cast<double>(r[c]) * d_key;
      d_log_lambda -= in.lambda * y_c * static_cast<double>(x[c]);
      d_v[c] = static_cast<float>(static_cast<double>(in.value_scale[i]) * y_c);
      d_r[c] = static_cast<float>(
          d_query + static_cast<double>(in.column_scale[i]) * d_key);
    }
    in.d_value_scale[i] = static_cast<float>(y_dot_v);
    in.d_column_scale[i] = static_cast<float>(d_column);
  }
  return d_log_lambda;
}

}  // namespace cubit
