// SPDX-License-Identifier: Apache-2.0
//
// Small dense matrices for the plain references of the mixer ops, on float,
// double or std::complex<double>. References are analytic: they never take an
// absolute value or a conjugate of T and compare through Real(x), so that a
// complex step through them is a derivative.

#ifndef CUBIT_OPS_REFERENCE_MATRIX_H_
#define CUBIT_OPS_REFERENCE_MATRIX_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "ops/reference_math.h"
#include "runtime/check.h"

namespace cubit {
namespace reference {

template <typename T>
using Vector = std::vector<T>;

// Row-major.
template <typename T>
class Matrix {
 public:
  Matrix() = default;
  Matrix(int64_t rows, int64_t columns)
      : rows_(rows),
        columns_(columns),
        values_(static_cast<size_t>(rows * columns)) {}
  Matrix(int64_t rows, int64_t columns, std::vector<T> values)
      : rows_(rows), columns_(columns), values_(std::move(values)) {
    CUBIT_CHECK_EQ(static_cast<int64_t>(values_.size()), rows * columns);
  }

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  T& operator()(int64_t i, int64_t j) {
    return values_[static_cast<size_t>(i * columns_ + j)];
  }
  const T& operator()(int64_t i, int64_t j) const {
    return values_[static_cast<size_t>(i * columns_ + j)];
  }
  std::vector<T>& values() { return values_; }
  const std::vector<T>& values() const { return values_; }

 private:
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  std::vector<T> values_;
};

// Row i of a times row j of b, without conjugation.
template <typename T>
T RowDot(const Matrix<T>& a, int64_t i, const Matrix<T>& b, int64_t j) {
  T sum = T(0);
  for (int64_t c = 0; c < a.columns(); ++c) sum += a(i, c) * b(j, c);
  return sum;
}

template <typename T>
Matrix<T> Transpose(const Matrix<T>& a) {
  Matrix<T> result(a.columns(), a.rows());
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < a.columns(); ++j) result(j, i) = a(i, j);
  }
  return result;
}

template <typename T>
Matrix<T> Multiply(const Matrix<T>& a, const Matrix<T>& b) {
  CUBIT_CHECK_EQ(a.columns(), b.rows());
  Matrix<T> result(a.rows(), b.columns());
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t k = 0; k < a.columns(); ++k) {
      for (int64_t j = 0; j < b.columns(); ++j) {
        result(i, j) += a(i, k) * b(k, j);
      }
    }
  }
  return result;
}

// X of A X = B by Gaussian elimination with partial pivoting. On a lower
// triangular A whose diagonal is its columns' largest entry this is forward
// substitution.
template <typename T>
Matrix<T> SolveLinear(Matrix<T> a, Matrix<T> b) {
  const int64_t n = a.rows();
  CUBIT_CHECK_EQ(a.columns(), n);
  for (int64_t k = 0; k < n; ++k) {
    int64_t pivot = k;
    for (int64_t i = k + 1; i < n; ++i) {
      if (Real(a(i, k)) * Real(a(i, k)) >
          Real(a(pivot, k)) * Real(a(pivot, k))) {
        pivot = i;
      }
    }
    for (int64_t j = 0; j < n; ++j) std::swap(a(k, j), a(pivot, j));
    for (int64_t c = 0; c < b.columns(); ++c) std::swap(b(k, c), b(pivot, c));
    for (int64_t i = k + 1; i < n; ++i) {
      const T factor = a(i, k) / a(k, k);
      for (int64_t j = k; j < n; ++j) a(i, j) -= factor * a(k, j);
      for (int64_t c = 0; c < b.columns(); ++c) b(i, c) -= factor * b(k, c);
    }
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    for (int64_t c = 0; c < b.columns(); ++c) {
      for (int64_t j = i + 1; j < n; ++j) b(i, c) -= a(i, j) * b(j, c);
      b(i, c) /= a(i, i);
    }
  }
  return b;
}

// X of A X = B for a lower triangular A, by forward substitution.
template <typename T>
Matrix<T> SolveLower(const Matrix<T>& a, Matrix<T> b) {
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t c = 0; c < b.columns(); ++c) {
      for (int64_t j = 0; j < i; ++j) b(i, c) -= a(i, j) * b(j, c);
      b(i, c) /= a(i, i);
    }
  }
  return b;
}

// X of A^T X = B for a lower triangular A, by backward substitution.
template <typename T>
Matrix<T> SolveLowerTransposed(const Matrix<T>& a, Matrix<T> b) {
  for (int64_t i = a.rows() - 1; i >= 0; --i) {
    for (int64_t c = 0; c < b.columns(); ++c) {
      for (int64_t j = i + 1; j < a.rows(); ++j) b(i, c) -= a(j, i) * b(j, c);
      b(i, c) /= a(i, i);
    }
  }
  return b;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_REFERENCE_MATRIX_H_
