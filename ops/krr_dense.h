// SPDX-License-Identifier: Apache-2.0
//
// The non-causal form of KRR, one head: the kernel matrix is full, so it is
// built whole and solved by LU in double (LAPACK). For evaluation; krr_cpu.cc
// streams the causal form.

#ifndef CUBIT_OPS_KRR_DENSE_H_
#define CUBIT_OPS_KRR_DENSE_H_

#include <cstdint>
#include <vector>

#include "ops/attention.h"
#include "runtime/tensor.h"

namespace cubit {

// Arguments of KrrSolveBackward for one head: vectors [T] of that head, views
// of all heads.
struct KrrHeadBackward {
  ConstHeadTensor r, v;
  const float* column_scale;
  const float* value_scale;
  double lambda;
  ConstHeadTensor x;
  const float* lse;
  ConstHeadTensor d_x;
  HeadTensor d_r, d_v;
  float* d_column_scale;
  float* d_value_scale;
};

// P of head (b, h) and the factors of L = P + lambda I; O(T^2) memory.
class DenseKrr {
 public:
  // CHECK: L is not singular to the last bit (lambda > 0 keeps it so).
  DenseKrr(const ConstHeadTensor& r, const float* column_scale, double lambda,
           const AttentionMask& mask, int64_t b, int64_t h);

  // Head (b, h) of x = L^-1 diag(value_scale) v; lse [T].
  void Forward(const ConstHeadTensor& v, const float* value_scale,
               const HeadTensor& x, float* lse) const;
  // All gradients of the head; returns that of log_lambda.
  double Backward(const KrrHeadBackward& in) const;

 private:
  // b = L^-1 b or L^-T b; `columns` [K][T].
  void Solve(bool transposed, int64_t num_columns,
             std::vector<double>* columns) const;
  // dS from Y [K][T]; the row sums of P dP are subtracted.
  std::vector<double> ScoreGradients(const KrrHeadBackward& in,
                                     const std::vector<double>& y) const;

  int64_t b_;
  int64_t h_;
  int64_t num_rows_;
  std::vector<double> p_;        // [T, T]
  std::vector<double> lse_;      // [T]
  std::vector<double> factors_;  // LU of L^T, column by column
  std::vector<int> pivots_;      // [T]
};

}  // namespace cubit

#endif  // CUBIT_OPS_KRR_DENSE_H_
