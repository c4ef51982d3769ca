// SPDX-License-Identifier: Apache-2.0
//
// Rows of a table by token id.

#ifndef CUBIT_OPS_EMBEDDING_H_
#define CUBIT_OPS_EMBEDDING_H_

#include "ops/vocabulary_slice.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// y[n] = weight[ids[n]].
//   ids [N] int32 in [0, V) (CHECKed on the CPU; on CUDA a token outside gives
//   a row of NaN), weight [V, D] and y [N, D] of one dtype, fp32 or bf16.
// With a `slice`, weight holds the rows of its tokens alone and the row of any
// other token in [0, slice.size) is zero: the sum over the slices is the whole.
void EmbeddingForward(ConstTensor ids, ConstTensor weight,
                      VocabularySlice slice, Tensor y, Stream& stream);
inline void EmbeddingForward(ConstTensor ids, ConstTensor weight, Tensor y,
                             Stream& stream) {
  EmbeddingForward(ids, weight, {0, weight.dim(0)}, y, stream);
}

// d_weight[ids[n]] += d_y[n], in the order of n for every row.
//   d_y [N, D] fp32 or bf16, d_weight [V, D] fp32. A token outside [0, V) is
//   CHECKed on the CPU and adds nothing on CUDA.
// With a `slice`, d_weight holds the rows of its tokens alone and the others in
// [0, slice.size) add nothing.
void EmbeddingBackward(ConstTensor ids, ConstTensor d_y, VocabularySlice slice,
                       Tensor d_weight, Stream& stream);
inline void EmbeddingBackward(ConstTensor ids, ConstTensor d_y, Tensor d_weight,
                              Stream& stream) {
  EmbeddingBackward(ids, d_y, {0, d_weight.dim(0)}, d_weight, stream);
}

}  // namespace cubit

#endif  // CUBIT_OPS_EMBEDDING_H_
