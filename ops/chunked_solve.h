// SPDX-License-Identifier: Apache-2.0
//
// The triangular systems of KRR (krr.h) and Delta (delta_solve.h) by chunks of
// rows and columns, for sequences that are spread over ranks. docs/numerics.md
// has the derivation.
//
//   forward   rows begin their sums, meet the solved chunks before them one
//             after the other, in any order (...Update), and are then solved on
//             their own diagonal block (...Solve).
//   adjoint   a chunk of columns meets the chunks after it whose Y is known, in
//             any order (...AdjointUpdate), then its own diagonal
//             (...AdjointSolve).
//   the rest  once Y of the rows is known: ...RowGradients, which gives delta,
//             then ...ScoreGradients pair by pair; nothing waits for them.
//
// What a forward keeps of a chunk for the backward, besides its inputs: x, lse
// and kernel_x (KRR with lambda <= 1 in every head: x and lse).
//
// `rows` and `columns` are chunks of one sequence, which may differ in length;
// columns come before rows or, where `diagonal` is set, are the same chunk.
// Views may be strided; tensors [B, H, Tc] are contiguous. Outputs alias
// nothing unless said. Chunks without a document in common cost nothing. Two
// orders of the chunks agree to rounding; one order gives the same bits every
// time, and krr.h and delta_solve.h agree to rounding.
//
// All tensors are fp32 unless said otherwise. On a GPU the activations r, w, k,
// v and beta may each be fp32 or bf16, and so may d_v, d_beta and the d_r of
// KrrChunkFinish, which are written. The dtype of r (w) says how products are
// formed: in bf16, operands are rounded to it as they are read, and x and y,
// bf16 or fp32 tensors, hold bf16 values, as those of krr.h are; in fp32, as
// SolvePrecision::kBFloat16x3 does, and x and y are fp32. Head dims go up to
// 128 there.

#ifndef CUBIT_OPS_CHUNKED_SOLVE_H_
#define CUBIT_OPS_CHUNKED_SOLVE_H_

#include "ops/chunked_attention.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Rows of the backward whose Y is known.
struct AdjointRows {
  ConstTensor lse;    // [B, H, Tc]
  ConstTensor delta;  // [B, H, Tc], of ...RowGradients
  ConstHeadTensor y;  // [B, Tc, H, K]
};

// --- KRR: (P + lambda I) X = diag(value_scale) V, P = softmax over j <= i of
//     S_ij = (r_i . r_j) column_scale_j. ---

// The kernel's factors of a chunk.
struct KrrChunk {
  ConstHeadTensor r;         // [B, Tc, H, K]
  ConstTensor column_scale;  // [B, H, Tc]
  ConstTensor segments;      // [B, Tc] int32 or absent
};

// The rest of a chunk's equations.
struct KrrRightSide {
  ConstHeadTensor v;        // [B, Tc, H, K]
  ConstTensor value_scale;  // [B, H, Tc]
  ConstTensor log_lambda;   // [H]; lambda = exp(log_lambda)
};

// `sums` as in chunked_attention.h, with the columns' X as values; all three
// are written. A head whose column_scale is positive in all rows is shifted by
// S_ii, the row's largest score (krr.h): row_max is that from the start, and
// stays. Others have a running maximum, -inf at first.
void BeginKrrRows(const KrrChunk& rows, const RowSums& sums, Stream& stream);
// Adds a chunk of solved columns before the rows.
void KrrChunkUpdate(const KrrChunk& rows, const KrrChunk& columns,
                    ConstHeadTensor x_columns, const RowSums& sums,
                    Stream& stream);
// After the last chunk of columns: solves the rows. x [B, Tc, H, K] and lse
// [B, H, Tc], of the whole rows, are written; so is kernel_x [B, Tc, H, K] = P
// X, unless it is absent, for heads with lambda > 1 (others: maybe): an average
// of X without cancellation, which KrrChunkRowGradients needs there. It may be
// sums.weighted.
void KrrChunkSolve(const KrrChunk& rows, const KrrRightSide& right,
                   const RowSums& sums, HeadTensor x, Tensor lse,
                   HeadTensor kernel_x, Stream& stream);

// The adjoint L^T Y = dX. g [B, Tc, H, K] of the columns begins as d_x:
//   g_j -= sum_i P_ij y_i over the rows of a later chunk.
void KrrChunkAdjointUpdate(const KrrChunk& rows, ConstTensor lse_rows,
                           ConstHeadTensor y_rows, const KrrChunk& columns,
                           HeadTensor g, Stream& stream);
// After the last later chunk: y from g on the chunk's diagonal block. y may be
// g where both are fp32.
void KrrChunkAdjointSolve(const KrrChunk& chunk, ConstTensor lse,
                          ConstTensor log_lambda, ConstHeadTensor g,
                          HeadTensor y, Stream& stream);

struct KrrRowGradients {
  HeadTensor d_v;        // [B, Tc, H, K]
  Tensor d_value_scale;  // [B, H, Tc]
  Tensor d_log_lambda;   // [H]
  Tensor delta;          // [B, H, Tc]
};

// What follows from a chunk's own y: d_v = value_scale y, d_value_scale = y . v
// and delta = -y . (P X) are written, d_log_lambda += -lambda sum y . x.
// P X is value_scale v - lambda x (krr.md, fact 4); where lambda > 1 that
// difference has no correct digit, and kernel_x of KrrChunkSolve is read.
// d_v may be y. CHECK: kernel_x is there if any lambda > 1; on a GPU, which
// alone knows lambda, the kernel says so and ends in an error of the device.
void KrrChunkRowGradients(const KrrRightSide& right, ConstHeadTensor x,
                          ConstHeadTensor kernel_x, ConstHeadTensor y,
                          const KrrRowGradients& gradients, Stream& stream);

struct KrrScoreGradients {
  HeadTensor d_queries;  // [B, Tc, H, K] of the rows
  HeadTensor d_keys;     // [B, Tc, H, K] of the columns
  Tensor row_sums;       // [B, H, Tc] fp64 of the rows
};

// What the scores of a pair of chunks give, dS_ij = P_ij (-y_i . x_j -
// delta_i), is added to
//   d_queries_i: sum_{j != i} dS_ij column_scale_j r_j,
//   d_keys_j: sum_{i != j} dS_ij r_i,
//   row_sums_i: sum_{j != i} dS_ij.
// All are zero before the first pair. A row of dS sums to 0, so dS_ii is minus
// row_sums_i over all pairs of the row (tile_sweep.h says why);
// KrrChunkFinish adds it.
void KrrChunkScoreGradients(const KrrChunk& rows, const AdjointRows& adjoint,
                            const KrrChunk& columns, ConstHeadTensor x_columns,
                            bool diagonal, const KrrScoreGradients& gradients,
                            Stream& stream);
// After the last pair of the chunk, as rows and as columns:
//   d_r = d_queries + column_scale d_keys and d_column_scale = r . d_keys, both
//   with the diagonal's share, are written. d_r may be d_queries or d_keys.
void KrrChunkFinish(const KrrChunk& chunk, ConstTensor row_sums,
                    ConstHeadTensor d_queries, ConstHeadTensor d_keys,
                    HeadTensor d_r, Tensor d_column_scale, Stream& stream);

// --- Delta: (I + diag(beta) W) X = V, W = softmax over j < i of
//     S_ij = scale w_i . k_j. ---

struct DeltaChunk {
  ConstHeadTensor w;     // [B, Tc, H, K]; read of rows
  ConstHeadTensor k;     // [B, Tc, H, K]; read of columns
  ConstHeadTensor beta;  // [B, Tc, H, 1]; read of rows
  ConstTensor segments;  // [B, Tc] int32 or absent
  float scale = 1;       // read of rows
};

// Adds a chunk of solved columns before the rows, whose sums BeginRowSums
// began.
void DeltaChunkUpdate(const DeltaChunk& rows, const DeltaChunk& columns,
                      ConstHeadTensor x_columns, const RowSums& sums,
                      Stream& stream);
// After the last chunk of columns: solves the rows. x, lse (-inf for a row that
// sees no key) and, unless it is absent, kernel_x [B, Tc, H, K] = W X are
// written. The backward needs kernel_x: (v - x) / beta has no correct digit for
// a small beta. kernel_x may be sums.weighted.
void DeltaChunkSolve(const DeltaChunk& rows, ConstHeadTensor v,
                     const RowSums& sums, HeadTensor x, Tensor lse,
                     HeadTensor kernel_x, Stream& stream);

// The adjoint; g of the columns begins as d_x:
//   g_j -= sum_i beta_i W_ij y_i over the rows of a later chunk.
void DeltaChunkAdjointUpdate(const DeltaChunk& rows, ConstTensor lse_rows,
                             ConstHeadTensor y_rows, const DeltaChunk& columns,
                             HeadTensor g, Stream& stream);
// After the last later chunk: y = d_v from g. y may be g where both are fp32.
void DeltaChunkAdjointSolve(const DeltaChunk& chunk, ConstTensor lse,
                            ConstHeadTensor g, HeadTensor y, Stream& stream);

// What follows from a chunk's own y: d_beta [B, Tc, H, 1] = -y . kernel_x and
// delta [B, H, Tc] = beta d_beta are written. d_v is y.
void DeltaChunkRowGradients(const DeltaChunk& rows, ConstHeadTensor y,
                            ConstHeadTensor kernel_x, Tensor delta,
                            HeadTensor d_beta, Stream& stream);
// dS_ij = W_ij (-beta_i y_i . x_j - delta_i): adds scale dS k_j to d_w of the
// rows and scale dS w_i to d_k of the columns.
void DeltaChunkScoreGradients(const DeltaChunk& rows,
                              const AdjointRows& adjoint,
                              const DeltaChunk& columns,
                              ConstHeadTensor x_columns, bool diagonal,
                              HeadTensor d_w, HeadTensor d_k, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_CHUNKED_SOLVE_H_
