// SPDX-License-Identifier: Apache-2.0
//
// The two implementations behind attention.h on CUDA: the project's kernels,
// which serve every call, and cuDNN, which serves some (docs/decisions/0021).
// attention_cuda.cu checks arguments and chooses; benchmarks call both.

#ifndef CUBIT_OPS_CUDA_ATTENTION_ENGINES_H_
#define CUBIT_OPS_CUDA_ATTENTION_ENGINES_H_

#include <cstdint>

#include "ops/attention.h"
#include "ops/chunked_attention.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {
namespace cuda {

// Arguments of AttentionForward, checked.
struct AttentionForwardCall {
  ConstHeadTensor q, k, v;
  float scale;
  AttentionMask mask;
  HeadTensor out;
  Tensor lse;
};

// Arguments of AttentionBackward, checked.
struct AttentionBackwardCall {
  ConstHeadTensor q, k, v, out;
  ConstTensor lse;
  ConstHeadTensor d_out;
  float scale;
  AttentionMask mask;
  AttentionAccumulate accumulate;
  HeadTensor d_q, d_k, d_v;
  Tensor delta;
};

void OwnAttentionForward(const AttentionForwardCall& call, Stream& stream);
void OwnAttentionBackward(const AttentionBackwardCall& call, Stream& stream);

// Return false, with nothing done, where cuDNN does not serve such a call (or
// is not part of this build): tensors must be bf16, aligned to 16 bytes, the
// mask without documents, and causal with Tq == Tk alone; a backward that
// accumulates, or needs too much work space, is not served. Tq and Tk of a
// backward may differ. Its `out` and `lse` may be of more keys than k has: the
// gradients are then those of the keys' part in the whole.
bool CudnnAttentionForward(const AttentionForwardCall& call, Stream& stream);
bool CudnnAttentionBackward(const AttentionBackwardCall& call, Stream& stream);

// More work space of scores than this is too much: our kernels, whose memory
// grows with T alone, serve what would need it.
constexpr int64_t kMostCudnnScoreBytes = int64_t{8} << 30;
// Work space of a CudnnAttentionBackward that is served, in bytes: the backward
// that repeats bit for bit keeps a number for every score, B H Tq Tk bf16.
// Found by what an H200 showed beside plans without it (cuDNN of CUDA 13.0, T
// 1,024 and 8,192, K 64 and 128: equal to 0.2%). 0 where it would be more than
// kMostCudnnScoreBytes, which is not served, and where cuDNN is not part of the
// build. Asks no device.
int64_t CudnnAttentionBackwardBytes(int64_t batch, int64_t num_heads,
                                    int64_t num_queries, int64_t num_keys);

// AttentionChunkForward and -Backward (chunked_attention.h) by cuDNN and a pass
// that adds up; false, with nothing done, where cuDNN does not serve the pair.
// A part is rounded to bf16 before it is added.
bool CudnnChunkForward(const ConstHeadTensor& q, const ConstHeadTensor& k,
                       const ConstHeadTensor& v, float scale,
                       const ChunkMask& mask, const RowSums& sums,
                       Stream& stream);
bool CudnnChunkBackward(const AttentionChunkRows& rows,
                        const ConstHeadTensor& k, const ConstHeadTensor& v,
                        float scale, const ChunkMask& mask,
                        const AttentionChunkGradients& gradients,
                        Stream& stream);
// Memory that they keep for the parts of such pairs.
int64_t CudnnChunkBytes(int64_t batch, int64_t num_heads, int64_t num_queries,
                        int64_t num_keys, int64_t head_dim);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ATTENTION_ENGINES_H_
