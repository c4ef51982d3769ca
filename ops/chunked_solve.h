// SPDX-License-Identifier: Apache-2.0
//
// The triangular systems of KRR (krr.h) and Delta (delta_solve.h) by chunks of
// rows and columns, for sequences that are spread over ranks. A chunk's rows
// meet the solved chunks before them one after the other, in any order
// (...ChunkUpdate), and are then solved on their own diagonal block
// (...ChunkSolve). The adjoint goes the other way: a chunk of columns meets the
// solved chunks after it, then its own diagonal. Gradients of the scores follow
// pair by pair once Y of the rows is known; nothing waits for them. Results
// agree with krr.h and delta_solve.h to rounding.
//
// `rows` and `columns` are chunks of one sequence, with columns before or equal
// to rows. All tensors fp32 (row_sum fp64); views may be strided; outputs alias
// nothing.

#ifndef CUBIT_OPS_CHUNKED_SOLVE_H_
#define CUBIT_OPS_CHUNKED_SOLVE_H_

#include "ops/chunked_attention.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// --- KRR: (P + lambda I) X = diag(value_scale) V,
//     S_ij = (r_i . r_j) column_scale_j. ---

// A chunk of KRR. Which fields a call reads is said there.
struct KrrChunk {
  ConstHeadTensor r;         // [B, Tc, H, K]
  ConstTensor column_scale;  // [B, H, Tc]
  ConstTensor segments;      // [B, Tc] int32 or absent
};

// Adds solved columns to the sums of `rows`: sums as in chunked_attention.h
// with values X. The shift of a row is S_ii while its scale is positive
// (krr.h), else the running maximum: BeginKrrRows sets it.
void BeginKrrRows(const KrrChunk& rows, const RowSums& sums, Stream& stream);
void KrrChunkUpdate(const KrrChunk& rows, const KrrChunk& columns,
                    ConstHeadTensor x_columns, const RowSums& sums,
                    Stream& stream);
// After the last column chunk before `rows`: solves the rows. x [B, Tc, H, K]
// and lse [B, H, Tc] are written.
void KrrChunkSolve(const KrrChunk& rows, ConstHeadTensor v,
                   ConstTensor value_scale, ConstTensor log_lambda,
                   const RowSums& sums, HeadTensor x, Tensor lse,
                   Stream& stream);

// Adjoint L^T Y = dX. `g` [B, Tc, H, K] of the columns begins as d_x.
//   g_j -= sum_i P_ij y_i over the rows of a later chunk.
void KrrChunkAdjointUpdate(const KrrChunk& rows, ConstTensor lse_rows,
                           ConstHeadTensor y_rows, const KrrChunk& columns,
                           HeadTensor g, Stream& stream);
// y from g on the diagonal block of the chunk (y may be g).
void KrrChunkAdjointSolve(const KrrChunk& chunk, ConstTensor lse,
                          ConstTensor log_lambda, ConstHeadTensor g,
                          HeadTensor y, Stream& stream);

// What follows from a chunk's own y, without other chunks: d_v = value_scale y
// and d_value_scale [B, H, Tc] = y . v are written; d_log_lambda [H] is added
// to; delta [B, H, Tc] is written (krr.md, fact 4: -y . (value_scale v - lambda
// x); with lambda > 1 that difference has no correct digit and delta is left to
// KrrChunkDelta). `kernel_x` [B, Tc, H, K] = P X, needed only for heads with
// lambda > 1; it is what is left of the forward's sums:
// (value_scale v - lambda x) computed without cancellation.
void KrrChunkRowGradients(ConstHeadTensor y, ConstHeadTensor v,
                          ConstHeadTensor x, ConstTensor value_scale,
                          ConstTensor log_lambda, ConstHeadTensor kernel_x,
                          HeadTensor d_v, Tensor d_value_scale,
                          Tensor d_log_lambda, Tensor delta, Stream& stream);

// Gradients of the scores of a pair of chunks, dS_ij = P_ij (-y_i . x_j -
// delta_i), added to
//   d_queries [B, Tc, H, K] of the rows: sum_j dS_ij column_scale_j r_j,
//   d_keys [B, Tc, H, K] of the columns: sum_i dS_ij r_i   (of
//       column_scale_j r_j; KrrChunkFinish takes it to r and column_scale),
//   row_sums [B, H, Tc] fp64 of the rows: sum over j != i of dS_ij; the
//       diagonal's dS_ii is minus that sum (a row of dS sums to 0) and is added
//       by KrrChunkFinish. Zero before the first pair.
void KrrChunkScoreGradients(const KrrChunk& rows, ConstTensor lse_rows,
                            ConstTensor delta_rows, ConstHeadTensor y_rows,
                            const KrrChunk& columns, ConstHeadTensor x_columns,
                            bool diagonal, HeadTensor d_queries,
                            HeadTensor d_keys, Tensor row_sums,
                            Stream& stream);
// After the last pair of the chunk as rows and as columns:
//   d_r = d_queries + column_scale d_keys (with the diagonal's share),
//   d_column_scale = r . d_keys; both written. d_queries may be d_r.
void KrrChunkFinish(const KrrChunk& chunk, ConstTensor row_sums,
                    ConstHeadTensor d_queries, ConstHeadTensor d_keys,
                    HeadTensor d_r, Tensor d_column_scale, Stream& stream);

// --- Delta: (I + diag(beta) W) X = V, W = softmax over j < i of
//     scale w_i . k_j. ---

struct DeltaChunk {
  ConstHeadTensor w;     // [B, Tc, H, K]; read of rows
  ConstHeadTensor k;     // [B, Tc, H, K]; read of columns
  ConstHeadTensor beta;  // [B, Tc, H, 1]; read of rows
  ConstTensor segments;  // [B, Tc] int32 or absent
  float scale = 1;
};

// Rows begin with BeginRowSums.
void DeltaChunkUpdate(const DeltaChunk& rows, const DeltaChunk& columns,
                      ConstHeadTensor x_columns, const RowSums& sums,
                      Stream& stream);
// lse is -inf for a row that sees no key.
void DeltaChunkSolve(const DeltaChunk& rows, ConstHeadTensor v,
                     const RowSums& sums, HeadTensor x, Tensor lse,
                     Stream& stream);
//   g_j -= sum_i beta_i W_ij y_i
void DeltaChunkAdjointUpdate(const DeltaChunk& rows, ConstTensor lse_rows,
                             ConstHeadTensor y_rows, const DeltaChunk& columns,
                             HeadTensor g, Stream& stream);
void DeltaChunkAdjointSolve(const DeltaChunk& chunk, ConstTensor lse,
                            ConstHeadTensor g, HeadTensor y, Stream& stream);
// d_v = y is the caller's. delta [B, H, Tc] and d_beta [B, Tc, H, 1] of the
// chunk's rows from what the forward kept: (W X)_i = (v_i - x_i) / beta_i where
// beta_i != 0; where that has no correct digit (small beta) the caller's
// `kernel_x` [B, Tc, H, K] = W X, which DeltaChunkKernel makes from finished
// sums, is read. Written.
void DeltaChunkRowGradients(const DeltaChunk& rows, ConstHeadTensor y,
                            ConstHeadTensor kernel_x, Tensor delta,
                            HeadTensor d_beta, Stream& stream);
// dS_ij = W_ij (-beta_i y_i . x_j - delta_i): adds scale dS k_j to d_w of the
// rows and scale dS w_i to d_k of the columns.
void DeltaChunkScoreGradients(const DeltaChunk& rows, ConstTensor lse_rows,
                              ConstTensor delta_rows, ConstHeadTensor y_rows,
                              const DeltaChunk& columns,
                              ConstHeadTensor x_columns, bool diagonal,
                              HeadTensor d_w, HeadTensor d_k, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_CHUNKED_SOLVE_H_
