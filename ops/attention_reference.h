// SPDX-License-Identifier: Apache-2.0
//
// Plain formulas of attention.h, one head, T x T matrices: for tests.

#ifndef CUBIT_OPS_ATTENTION_REFERENCE_H_
#define CUBIT_OPS_ATTENTION_REFERENCE_H_

#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/reference_matrix.h"

namespace cubit {
namespace reference {

// Which keys a query may see; queries are the last of the keys.
struct Mask {
  bool causal = true;
  bool strict = false;            // a query does not see its own key
  std::vector<int32_t> segments;  // document of every key, or empty

  bool Sees(int64_t query, int64_t key, int64_t offset = 0) const {
    const int64_t position = query + offset;
    if (!segments.empty() && segments[static_cast<size_t>(position)] !=
                                 segments[static_cast<size_t>(key)]) {
      return false;
    }
    if (strict && key == position) return false;
    return !causal || key <= position;
  }
};

template <typename T>
struct Softmax {
  Matrix<T> p;    // [Tq, Tk], zero where a query does not see the key
  Vector<T> lse;  // [Tq], -inf for a query that sees none
};

// Rows of softmax over the visible entries of `scores`.
template <typename T>
Softmax<T> SoftmaxOfScores(const Matrix<T>& scores, const Mask& mask) {
  using std::exp;
  using std::log;
  const int64_t offset = scores.columns() - scores.rows();
  Softmax<T> result{Matrix<T>(scores.rows(), scores.columns()), {}};
  for (int64_t i = 0; i < scores.rows(); ++i) {
    double maximum = -std::numeric_limits<double>::infinity();
    for (int64_t j = 0; j < scores.columns(); ++j) {
      if (mask.Sees(i, j, offset)) {
        maximum = std::fmax(maximum, Real(scores(i, j)));
      }
    }
    const T shift = static_cast<T>(std::isinf(maximum) ? 0.0 : maximum);
    T sum = T(0);
    for (int64_t j = 0; j < scores.columns(); ++j) {
      if (!mask.Sees(i, j, offset)) continue;
      result.p(i, j) = exp(scores(i, j) - shift);
      sum += result.p(i, j);
    }
    if (Real(sum) == 0) {
      result.lse.push_back(T(-std::numeric_limits<double>::infinity()));
      continue;
    }
    for (int64_t j = 0; j < scores.columns(); ++j) result.p(i, j) /= sum;
    result.lse.push_back(shift + log(sum));
  }
  return result;
}

// dS_ij = P_ij (dP_ij - sum_k P_ik dP_ik).
template <typename T>
Matrix<T> SoftmaxBackward(const Matrix<T>& p, const Matrix<T>& d_p) {
  Matrix<T> d_scores(p.rows(), p.columns());
  for (int64_t i = 0; i < p.rows(); ++i) {
    const T delta = RowDot(p, i, d_p, i);
    for (int64_t j = 0; j < p.columns(); ++j) {
      d_scores(i, j) = p(i, j) * (d_p(i, j) - delta);
    }
  }
  return d_scores;
}

// scale a b^T.
template <typename T>
Matrix<T> ScaledProduct(double scale, const Matrix<T>& a, const Matrix<T>& b) {
  Matrix<T> result(a.rows(), b.rows());
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < b.rows(); ++j) {
      result(i, j) = static_cast<T>(scale) * RowDot(a, i, b, j);
    }
  }
  return result;
}

template <typename T>
Matrix<T> Scaled(double scale, Matrix<T> a) {
  for (T& value : a.values()) value *= static_cast<T>(scale);
  return a;
}

template <typename T>
struct AttentionResult {
  Matrix<T> out;  // [Tq, K]
  Vector<T> lse;  // [Tq]
};

template <typename T>
AttentionResult<T> AttentionForward(const Matrix<T>& q, const Matrix<T>& k,
                                    const Matrix<T>& v, double scale,
                                    const Mask& mask) {
  Softmax<T> softmax = SoftmaxOfScores(ScaledProduct(scale, q, k), mask);
  return {Multiply(softmax.p, v), std::move(softmax.lse)};
}

template <typename T>
struct AttentionGradients {
  Matrix<T> d_q, d_k, d_v;
};

template <typename T>
AttentionGradients<T> AttentionBackward(const Matrix<T>& q, const Matrix<T>& k,
                                        const Matrix<T>& v, double scale,
                                        const Mask& mask,
                                        const Matrix<T>& d_out) {
  const Matrix<T> p = SoftmaxOfScores(ScaledProduct(scale, q, k), mask).p;
  const Matrix<T> d_scores = SoftmaxBackward(p, ScaledProduct(1.0, d_out, v));
  return {Scaled(scale, Multiply(d_scores, k)),
          Scaled(scale, Multiply(Transpose(d_scores), q)),
          Multiply(Transpose(p), d_out)};
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_ATTENTION_REFERENCE_H_
