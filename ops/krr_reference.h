// SPDX-License-Identifier: Apache-2.0
//
// Plain formulas of krr.h, one head, T x T matrices: for tests. The backward
// differentiates the formulas as they stand, without the closed forms that the
// streamed solver uses.

#ifndef CUBIT_OPS_KRR_REFERENCE_H_
#define CUBIT_OPS_KRR_REFERENCE_H_

#include <cmath>
#include <cstdint>
#include <utility>

#include "ops/attention_reference.h"
#include "ops/reference_matrix.h"

namespace cubit {
namespace reference {

// Per-head parameters.
template <typename T>
struct KrrParameters {
  T scale = T(1);
  T lower = T(0.5);
  T upper_scale = T(1.5);
  T log_lambda = T(0);
};

template <typename T>
T Logistic(const T& x) {
  using std::exp;
  return T(1) / (T(1) + exp(-x));
}

template <typename T>
struct KrrFactors {
  Vector<T> column_scale;  // [T]
  Vector<T> value_scale;   // [T]
};

// `lrr_logits` [T] or empty (NoLRR).
template <typename T>
KrrFactors<T> KrrFactorsForward(const Matrix<T>& r, const Vector<T>& lrr_logits,
                                const KrrParameters<T>& parameters) {
  using std::sqrt;
  KrrFactors<T> factors;
  for (int64_t t = 0; t < r.rows(); ++t) {
    factors.column_scale.push_back(parameters.scale /
                                   sqrt(RowDot(r, t, r, t) + T(1e-12)));
    factors.value_scale.push_back(
        lrr_logits.empty()
            ? T(1)
            : parameters.lower +
                  parameters.upper_scale *
                      Logistic(lrr_logits[static_cast<size_t>(t)]));
  }
  return factors;
}

template <typename T>
struct KrrFactorsGradients {
  Matrix<T> d_r;
  Vector<T> d_lrr_logits;
  T d_scale = T(0);
  T d_lower = T(0);
  T d_upper_scale = T(0);
};

template <typename T>
KrrFactorsGradients<T> KrrFactorsBackward(const Matrix<T>& r,
                                          const Vector<T>& lrr_logits,
                                          const KrrParameters<T>& parameters,
                                          const Vector<T>& d_column_scale,
                                          const Vector<T>& d_value_scale) {
  using std::sqrt;
  KrrFactorsGradients<T> gradients;
  gradients.d_r = Matrix<T>(r.rows(), r.columns());
  for (int64_t t = 0; t < r.rows(); ++t) {
    const size_t i = static_cast<size_t>(t);
    const T norm = sqrt(RowDot(r, t, r, t) + T(1e-12));
    gradients.d_scale += d_column_scale[i] / norm;
    for (int64_t c = 0; c < r.columns(); ++c) {
      gradients.d_r(t, c) = -d_column_scale[i] * parameters.scale * r(t, c) /
                            (norm * norm * norm);
    }
    if (lrr_logits.empty()) continue;
    const T s = Logistic(lrr_logits[i]);
    gradients.d_lower += d_value_scale[i];
    gradients.d_upper_scale += d_value_scale[i] * s;
    gradients.d_lrr_logits.push_back(d_value_scale[i] * parameters.upper_scale *
                                     s * (T(1) - s));
  }
  return gradients;
}

// S_ij = (r_i . r_j) column_scale_j.
template <typename T>
Matrix<T> KrrScores(const Matrix<T>& r, const Vector<T>& column_scale) {
  Matrix<T> scores = ScaledProduct(1.0, r, r);
  for (int64_t i = 0; i < r.rows(); ++i) {
    for (int64_t j = 0; j < r.rows(); ++j) {
      scores(i, j) *= column_scale[static_cast<size_t>(j)];
    }
  }
  return scores;
}

// L = P + lambda I.
template <typename T>
Matrix<T> AddToDiagonal(Matrix<T> p, const T& lambda) {
  for (int64_t i = 0; i < p.rows(); ++i) p(i, i) += lambda;
  return p;
}

template <typename T>
struct KrrSolution {
  Matrix<T> x;    // [T, K]
  Vector<T> lse;  // [T]
};

template <typename T>
KrrSolution<T> KrrSolveForward(const Matrix<T>& r, const Matrix<T>& v,
                               const KrrFactors<T>& factors,
                               const T& log_lambda, const Mask& mask) {
  using std::exp;
  Softmax<T> softmax =
      SoftmaxOfScores(KrrScores(r, factors.column_scale), mask);
  const Matrix<T> l = AddToDiagonal(softmax.p, exp(log_lambda));
  Matrix<T> rhs = v;
  for (int64_t i = 0; i < v.rows(); ++i) {
    for (int64_t c = 0; c < v.columns(); ++c) {
      rhs(i, c) *= factors.value_scale[static_cast<size_t>(i)];
    }
  }
  return {mask.causal ? SolveLower(l, std::move(rhs))
                      : SolveLinear(l, std::move(rhs)),
          std::move(softmax.lse)};
}

template <typename T>
struct KrrSolveGradients {
  Matrix<T> d_r, d_v;
  Vector<T> d_column_scale, d_value_scale;
  T d_log_lambda = T(0);
};

template <typename T>
KrrSolveGradients<T> KrrSolveBackward(const Matrix<T>& r, const Matrix<T>& v,
                                      const KrrFactors<T>& factors,
                                      const T& log_lambda, const Mask& mask,
                                      const Matrix<T>& x,
                                      const Matrix<T>& d_x) {
  using std::exp;
  const Matrix<T> p =
      SoftmaxOfScores(KrrScores(r, factors.column_scale), mask).p;
  const T lambda = exp(log_lambda);
  const Matrix<T> l = AddToDiagonal(p, lambda);
  const Matrix<T> y = mask.causal ? SolveLowerTransposed(l, d_x)
                                  : SolveLinear(Transpose(l), d_x);
  const Matrix<T> d_scores = SoftmaxBackward(p, ScaledProduct(-1.0, y, x));

  KrrSolveGradients<T> gradients;
  gradients.d_r = Matrix<T>(r.rows(), r.columns());
  gradients.d_v = Matrix<T>(v.rows(), v.columns());
  gradients.d_column_scale.assign(factors.column_scale.size(), T(0));
  for (int64_t i = 0; i < r.rows(); ++i) {
    gradients.d_log_lambda -= lambda * RowDot(y, i, x, i);
    gradients.d_value_scale.push_back(RowDot(y, i, v, i));
    for (int64_t c = 0; c < v.columns(); ++c) {
      gradients.d_v(i, c) =
          factors.value_scale[static_cast<size_t>(i)] * y(i, c);
    }
    for (int64_t j = 0; j < r.rows(); ++j) {
      const size_t column = static_cast<size_t>(j);
      const T d_product = d_scores(i, j) * factors.column_scale[column];
      gradients.d_column_scale[column] += d_scores(i, j) * RowDot(r, i, r, j);
      for (int64_t c = 0; c < r.columns(); ++c) {
        gradients.d_r(i, c) += d_product * r(j, c);
        gradients.d_r(j, c) += d_product * r(i, c);
      }
    }
  }
  return gradients;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_KRR_REFERENCE_H_
