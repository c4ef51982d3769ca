// SPDX-License-Identifier: Apache-2.0
//
// Plain formulas of delta_solve.h, one head, T x T matrices: for tests.

#ifndef CUBIT_OPS_DELTA_SOLVE_REFERENCE_H_
#define CUBIT_OPS_DELTA_SOLVE_REFERENCE_H_

#include <cstdint>
#include <utility>

#include "ops/attention_reference.h"
#include "ops/reference_matrix.h"

namespace cubit {
namespace reference {

// L = I + diag(beta) W.
template <typename T>
Matrix<T> DeltaSystem(const Matrix<T>& weights, const Vector<T>& beta) {
  Matrix<T> l = weights;
  for (int64_t i = 0; i < l.rows(); ++i) {
    for (int64_t j = 0; j < l.columns(); ++j) {
      l(i, j) *= beta[static_cast<size_t>(i)];
    }
    l(i, i) += T(1);
  }
  return l;
}

template <typename T>
struct DeltaSolution {
  Matrix<T> x;    // [T, K]
  Vector<T> lse;  // [T]
};

// `mask` without its own strictness: the system is always strict.
template <typename T>
DeltaSolution<T> DeltaSolveForward(const Matrix<T>& w, const Matrix<T>& k,
                                   const Matrix<T>& v, const Vector<T>& beta,
                                   double scale, Mask mask) {
  mask.strict = true;
  Softmax<T> softmax = SoftmaxOfScores(ScaledProduct(scale, w, k), mask);
  return {SolveLower(DeltaSystem(softmax.p, beta), v), std::move(softmax.lse)};
}

template <typename T>
struct DeltaSolveGradients {
  Matrix<T> d_w, d_k, d_v;
  Vector<T> d_beta;
};

template <typename T>
DeltaSolveGradients<T> DeltaSolveBackward(const Matrix<T>& w,
                                          const Matrix<T>& k,
                                          const Vector<T>& beta, double scale,
                                          Mask mask, const Matrix<T>& x,
                                          const Matrix<T>& d_x) {
  mask.strict = true;
  const Matrix<T> p = SoftmaxOfScores(ScaledProduct(scale, w, k), mask).p;
  Matrix<T> y = SolveLowerTransposed(DeltaSystem(p, beta), d_x);
  Matrix<T> d_p = ScaledProduct(-1.0, y, x);  // gradient of L, off-diagonal
  Vector<T> d_beta;
  for (int64_t i = 0; i < p.rows(); ++i) {
    d_beta.push_back(RowDot(p, i, d_p, i));
    for (int64_t j = 0; j < p.columns(); ++j) {
      d_p(i, j) *= beta[static_cast<size_t>(i)];
    }
  }
  const Matrix<T> d_scores = SoftmaxBackward(p, d_p);
  return {Scaled(scale, Multiply(d_scores, k)),
          Scaled(scale, Multiply(Transpose(d_scores), w)), std::move(y),
          std::move(d_beta)};
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_DELTA_SOLVE_REFERENCE_H_
