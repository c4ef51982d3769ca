// SPDX-License-Identifier: Apache-2.0
//
// Softmax attention of one chunk of queries over one chunk of keys at a time,
// for sequences that are spread over ranks: sums go on from call to call, in
// any order of the chunks, and are finished once (Milakov and Gimelshein,
// arXiv:1805.02867; Liu et al., "Ring attention", arXiv:2310.01889).
// attention.h does whole sequences; results agree to rounding, also between two
// orders of the chunks, and one order gives the same bits every time.
//
// A backward needs q, k, v, out and lse of every chunk.
//
// On the CPU all tensors are fp32. On a GPU q, k, v, out and d_out may each be
// fp32 or bf16, and the dtype of q says how products are formed: from bf16
// operands (what is fp32 is rounded as it is read) or as attention.h forms
// those of fp32 tensors. Sums, lse, delta and d_q, d_k, d_v, which are added
// to, are fp32 there too; head dims go up to 128. Where cuDNN serves a pair of
// bf16 chunks, what it adds is rounded to bf16 first.

#ifndef CUBIT_OPS_CHUNKED_ATTENTION_H_
#define CUBIT_OPS_CHUNKED_ATTENTION_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Two chunks of one sequence and which of their pairs count.
struct ChunkMask {
  // The chunks are the same: a query sees keys up to its own. Otherwise every
  // key comes before every query.
  bool diagonal = false;
  // Document of every query [B, Tq] and of every key [B, Tk], int32, as in
  // AttentionMask: slices of ids that do not decrease along the sequence. Both
  // absent: one document.
  ConstTensor query_segments;
  ConstTensor key_segments;
};

// What a chunk of queries has summed so far over the keys it has met:
//   row_sum_i = sum_j exp(S_ij - row_max_i),
//   weighted_i = sum_j exp(S_ij - row_max_i) v_j.
struct RowSums {
  Tensor row_max;       // [B, H, Tq] fp32; -inf before the first key
  Tensor row_sum;       // [B, H, Tq] fp64: see SoftmaxRows in tile_sweep.h
  HeadTensor weighted;  // [B, Tq, H, K] fp32
};

// No key met yet: all three are written.
void BeginRowSums(const RowSums& sums, Stream& stream);

// Adds a chunk of keys to begun sums: S_ij = scale q_i . k_j.
//   q [B, Tq, H, K]; k, v [B, Tk, H, K]; views may be strided.
// Chunks without a document in common are not read.
void AttentionChunkForward(ConstHeadTensor q, ConstHeadTensor k,
                           ConstHeadTensor v, float scale,
                           const ChunkMask& mask, const RowSums& sums,
                           Stream& stream);

// out_i = weighted_i / row_sum_i [B, Tq, H, K], in out's dtype; lse [B, H, Tq]
// fp32. A query that met no key gets 0 and -inf. out may be sums.weighted.
void FinishRowSums(const RowSums& sums, HeadTensor out, Tensor lse,
                   Stream& stream);

// delta [B, H, Tq] fp32 = rows of d_out . out; written.
void AttentionChunkDelta(ConstHeadTensor out, ConstHeadTensor d_out,
                         Tensor delta, Stream& stream);

// Queries of the backward. lse and delta are of their whole rows, over the keys
// of all chunks.
struct AttentionChunkRows {
  ConstHeadTensor q;      // [B, Tq, H, K]
  ConstHeadTensor d_out;  // [B, Tq, H, K]
  ConstTensor lse;        // [B, H, Tq]
  ConstTensor delta;      // [B, H, Tq]
  // [B, Tq, H, K] of FinishRowSums, or absent: cuDNN, which may serve a pair on
  // a GPU, reads it in delta's place.
  ConstHeadTensor out;
};

struct AttentionChunkGradients {
  HeadTensor d_q;  // [B, Tq, H, K] fp32
  HeadTensor d_k;  // [B, Tk, H, K] fp32
  HeadTensor d_v;  // [B, Tk, H, K] fp32
};

// Adds what the pairs of two chunks give to `gradients`, which alias nothing.
// Scores are recomputed.
void AttentionChunkBackward(const AttentionChunkRows& rows, ConstHeadTensor k,
                            ConstHeadTensor v, float scale,
                            const ChunkMask& mask,
                            const AttentionChunkGradients& gradients,
                            Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_CHUNKED_ATTENTION_H_
