// SPDX-License-Identifier: Apache-2.0
//
// Softmax attention, streamed over key blocks: memory O(T K), never T x T
// (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135).

#ifndef CUBIT_OPS_ATTENTION_H_
#define CUBIT_OPS_ATTENTION_H_

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Which keys a query may see.
struct AttentionMask {
  // Key position <= query position. Where there are fewer queries than keys,
  // the queries are the last ones: query i stands at Tk - Tq + i.
  bool causal = true;
  // Document of every key position, [B, Tk] int32, non-decreasing along T, or
  // absent: a query sees only keys of its own document.
  ConstTensor segment_ids;
};

// out_i = sum_j softmax_j(scale q_i . k_j) v_j over the visible j;
// lse_i = log sum_j exp(scale q_i . k_j).
//   q, out [B, Tq, H, K]; k, v [B, Tk, H, K], Tq <= Tk; lse [B, H, Tq] fp32.
//   Views may be strided; out may alias none of them.
void AttentionForward(ConstHeadTensor q, ConstHeadTensor k, ConstHeadTensor v,
                      float scale, const AttentionMask& mask, HeadTensor out,
                      Tensor lse, Stream& stream);

// Gradients from d_out; scores are recomputed. Requires Tq == Tk.
//   d_q, d_k, d_v: written (not accumulated), or added to what is there where
//   the matching field of `accumulate` says so.
//   delta [B, H, T] fp32 scratch (rows of d_out . out).
// d_q, d_k, d_v may not alias q, k, v.
struct AttentionAccumulate {
  bool d_q = false;
  bool d_k = false;
  bool d_v = false;
};
void AttentionBackward(ConstHeadTensor q, ConstHeadTensor k, ConstHeadTensor v,
                       ConstHeadTensor out, ConstTensor lse,
                       ConstHeadTensor d_out, float scale,
                       const AttentionMask& mask,
                       const AttentionAccumulate& accumulate, HeadTensor d_q,
                       HeadTensor d_k, HeadTensor d_v, Tensor delta,
                       Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_ATTENTION_H_
