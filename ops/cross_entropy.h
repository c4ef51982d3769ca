// SPDX-License-Identifier: Apache-2.0
//
// Softmax cross-entropy on a chunk of rows of logits, loss and gradient in one
// pass, so that logits of all rows never exist at once.

#ifndef CUBIT_OPS_CROSS_ENTROPY_H_
#define CUBIT_OPS_CROSS_ENTROPY_H_

#include "ops/vocabulary_slice.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// A row whose target is this adds nothing to the loss.
constexpr int kIgnoredTarget = -100;

// Per row n: lse = log sum_{v < valid_vocab} exp(logits[n, v]),
//   losses[n] = lse - logits[n, target]      (the cross-entropy alone)
// and, if `d_logits` is not absent, the gradient of grad_scale times
// losses[n] + z_loss * lse^2:
//   d_logits[n, v] = grad_scale * (softmax_v (1 + 2 z_loss lse) - [v =
//   target]).
// Columns v >= valid_vocab (padding) take no part: their gradient is zero.
// A row with target kIgnoredTarget has loss and gradient zero.
//   logits [n, V] fp32 or bf16; targets [n] int32; losses [n] fp32; d_logits
//   [n, V], of the logits' dtype, may be logits. A target outside [0,
//   valid_vocab) is CHECKed on the CPU; on CUDA its loss and gradient are NaN.
// The z-loss is that of PaLM (arXiv:2204.02311, section 5).
void CrossEntropy(ConstTensor logits, ConstTensor targets, int64_t valid_vocab,
                  float z_loss, float grad_scale, Tensor losses,
                  Tensor d_logits, Stream& stream);

// The same where each rank has the logits [n, V] of a slice of the vocabulary
// (Megatron's vocabulary-parallel loss, Shoeybi et al., arXiv:1909.08053,
// section 3), in three steps with one exchange after the first.
//
// statistics[n] = (m, sum over existing v of exp(logits[n, v] - m), the
// target's logit, or 0 if another slice has it), m the row's maximum over the
// tokens of the slice that exist; if none does, the lowest finite number and 0.
//   targets [n] int32, over the whole vocabulary; statistics [n, 3] fp32. A row
//   whose target is ignored has statistics like any other.
void CrossEntropyStatistics(ConstTensor logits, ConstTensor targets,
                            VocabularySlice slice, Tensor statistics,
                            Stream& stream);

// losses as above from the statistics [P, n, 3] of all slices, which are merged
// in their order. Targets outside [0, valid_vocab) as above.
void CrossEntropyLosses(ConstTensor statistics, ConstTensor targets,
                        int64_t valid_vocab, Tensor losses, Stream& stream);

// d_logits [n, V] as above, of this slice; may be logits.
void CrossEntropyGradient(ConstTensor logits, ConstTensor targets,
                          VocabularySlice slice, ConstTensor statistics,
                          float z_loss, float grad_scale, Tensor d_logits,
                          Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_CROSS_ENTROPY_H_
