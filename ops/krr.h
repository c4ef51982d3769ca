// SPDX-License-Identifier: Apache-2.0
//
// Kernel ridge regression, the heart of Cubit (arXiv:2605.06501, section 3.3
// and appendix H): per head a causal, lower-triangular T x T system is solved.
// It is streamed by blocks; memory is O(T K). docs/numerics.md has the
// derivation, krr_reference.h the plain formulas. What surrounds the solve
// stands in other ops: rotary.h before it, attention.h (A X) after it.

#ifndef CUBIT_OPS_KRR_H_
#define CUBIT_OPS_KRR_H_

#include "ops/attention.h"
#include "ops/solve_precision.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Keeps the norm of a zero row away from 0; far below any real |r|^2.
constexpr double kKrrNormEpsilon = 1e-12;

// Per-token factors of the solve.
//   column_scale[b,h,t] = scale_h / sqrt(|r_t|^2 + 1e-12): the kernel's columns
//     are normalised, S_ij = (r_i . r_j) column_scale_j;
//   value_scale[b,h,t] = lower_h + upper_scale_h sigmoid(lrr_logits[b,t,h]),
//     the LRR factor that multiplies the values; all ones if lrr_logits,
//     lower and upper_scale are absent (NoLRR).
//   r [B, T, H, K]; lrr_logits [B, T, H] as a strided view with K = 1;
//   scale, lower, upper_scale [H]; results [B, H, T] fp32.
void KrrFactorsForward(ConstHeadTensor r, ConstHeadTensor lrr_logits,
                       ConstTensor scale, ConstTensor lower,
                       ConstTensor upper_scale, Tensor column_scale,
                       Tensor value_scale, Stream& stream);

// RotaryForward of r by `rotary_table` from `first_position` (rotary.h), in
// place, and then KrrFactorsForward, in one pass over r. An empty table: no
// rotation.
void KrrRotaryFactorsForward(ConstTensor rotary_table, int64_t first_position,
                             HeadTensor r, ConstHeadTensor lrr_logits,
                             ConstTensor scale, ConstTensor lower,
                             ConstTensor upper_scale, Tensor column_scale,
                             Tensor value_scale, Stream& stream);

// Adds to d_r, d_scale, d_lower, d_upper_scale; writes d_lrr_logits. Absent
// arguments as in the forward.
void KrrFactorsBackward(ConstHeadTensor r, ConstHeadTensor lrr_logits,
                        ConstTensor scale, ConstTensor upper_scale,
                        ConstTensor column_scale, ConstTensor d_column_scale,
                        ConstTensor d_value_scale, HeadTensor d_r,
                        HeadTensor d_lrr_logits, Tensor d_scale, Tensor d_lower,
                        Tensor d_upper_scale, Stream& stream);

// What is left of KrrFactorsBackward where KrrSolveBackward has gone back
// through the norm of r (KrrBefore): sums over [B, H, T].
//   d_scale_shares [B, H, T]: the tokens' shares of d_scale; d_value_scale
//   [B, H, T]; lrr_logits [B, T, H] as a strided view with K = 1, fp32 or bf16,
//   as d_lrr_logits; upper_scale [H].
// Adds to d_scale, d_lower, d_upper_scale; writes d_lrr_logits. Absent
// arguments as in the forward.
void KrrScalarsBackward(ConstHeadTensor lrr_logits, ConstTensor upper_scale,
                        ConstTensor d_scale_shares, ConstTensor d_value_scale,
                        HeadTensor d_lrr_logits, Tensor d_scale, Tensor d_lower,
                        Tensor d_upper_scale, Stream& stream);

// Solves (P + lambda_h I) X = diag(value_scale) V for X, per head, where
// P = softmax over visible j of S_ij = (r_i . r_j) column_scale_j.
//   r, v, x [B, T, H, K]; column_scale, value_scale, lse [B, H, T];
//   log_lambda [H]; lambda = exp(log_lambda).
//   lse_i = log sum_j exp(S_ij), kept for the backward.
//   r, v, x all fp32 or all bf16; everything else fp32. `precision` says how
//   products of fp32 tensors are formed on tensor cores.
// Rows before `first_row` of x (and lse) are taken as solved: decoding and
// chunked solves continue where they stopped.
// The exponent is shifted by S_ii, the row's largest entry (Cauchy-Schwarz)
// while scale_h > 0; a head with scale_h <= 0 uses a running maximum.
// mask.causal = false builds the dense T x T system per head and solves it by
// LU in double: for evaluation only, O(T^2) memory, on the CPU alone (CUDA:
// CHECK). x may not alias the inputs.
void KrrSolveForward(ConstHeadTensor r, ConstHeadTensor v,
                     ConstTensor column_scale, ConstTensor value_scale,
                     ConstTensor log_lambda, const AttentionMask& mask,
                     SolvePrecision precision, int64_t first_row, HeadTensor x,
                     Tensor lse, Stream& stream);

// What made the r and column_scale of a solve, for a backward that goes through
// it while the rows are at hand instead of by passes of their own.
struct KrrBefore {
  // column_scale is that of KrrFactorsForward, a function of r.
  bool normalised = false;
  // RotaryForward by this table [>= T, K] from position 0; empty: nothing.
  ConstTensor rotary_table;
};

// Gradients from d_x by one sweep of the transposed solve L^T Y = dX, last
// block to first (krr.md, fact 4).
//   d_r, d_v: written. d_column_scale, d_value_scale [B, H, T]: written.
//   before.normalised: d_r has the part that goes through column_scale too,
//     -d_column_scale_i column_scale_i / (|r_i|^2 + 1e-12) r_i, and
//     d_column_scale receives d_column_scale_i / sqrt(|r_i|^2 + 1e-12), the
//     token's share of d_scale (KrrScalarsBackward).
//   before.rotary_table: d_r is then that of the r before the rotation. K even.
//   d_log_lambda [H]: accumulated. y [B, T, H, K]: scratch; may alias d_x,
//   which is then overwritten.
//   health [3] fp32: written as KrrHealth does, beside the sweep, which has the
//   rows at hand; absent: not computed. Of the entries of P that the sweep
//   itself forms, so [0] is KrrHealth's to the rounding of its products; [1]
//   and [2] are KrrHealth's to the bit. May alias nothing.
//   d_r_sums, d_v_sums [H * K] fp32: the sums over B and T of what is written
//   to d_r and d_v are added, in a fixed order (AddHeadSums in heads.h); on
//   GPUs by the kernels that write it, where they can. Absent: not computed.
void KrrSolveBackward(ConstHeadTensor r, ConstHeadTensor v,
                      ConstTensor column_scale, ConstTensor value_scale,
                      ConstTensor log_lambda, const AttentionMask& mask,
                      SolvePrecision precision, const KrrBefore& before,
                      ConstHeadTensor x, ConstTensor lse, ConstHeadTensor d_x,
                      HeadTensor y, HeadTensor d_r, HeadTensor d_v,
                      Tensor d_column_scale, Tensor d_value_scale,
                      Tensor d_log_lambda, Tensor health, Tensor d_r_sums,
                      Tensor d_v_sums, Stream& stream);

// Health of a solve, for the log: result [3] fp32 receives
//   [0] the smallest diagonal entry of P: min over rows of exp(S_ii - lse_i);
//   [1] the largest |x| over the largest |value_scale v| (the gain);
//   [2] the largest lambda.
// Computed from what the forward kept; costs O(T K).
void KrrHealth(ConstHeadTensor r, ConstHeadTensor v, ConstTensor column_scale,
               ConstTensor value_scale, ConstTensor log_lambda,
               ConstHeadTensor x, ConstTensor lse, Tensor result,
               Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_KRR_H_
