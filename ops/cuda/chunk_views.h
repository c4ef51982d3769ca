// SPDX-License-Identifier: Apache-2.0
//
// Host side of chunk_arguments.h: views that the chunk ops were given, checked,
// as kernel arguments.

#ifndef CUBIT_OPS_CUDA_CHUNK_VIEWS_H_
#define CUBIT_OPS_CUDA_CHUNK_VIEWS_H_

#include "ops/chunked_attention.h"
#include "ops/cuda/chunk_arguments.h"
#include "runtime/tensor.h"

namespace cubit {
namespace cuda {

enum class ChunkDTypes { kFloat32, kFloat32OrBFloat16 };

// CHECK: `x` has the extents of `like` and one of `dtypes`. An activation, read
// or written.
ChunkHeads ChunkHeadsOf(const ConstHeadTensor& x, const char* name,
                        const ConstHeadTensor& like, ChunkDTypes dtypes);
// The same for another chunk of these sequences, of any length, and for one
// number a token and head (head dim 1).
ChunkHeads OtherChunkHeadsOf(const ConstHeadTensor& x, const char* name,
                             const ConstHeadTensor& like, ChunkDTypes dtypes);
ChunkHeads ChunkScalarsOf(const ConstHeadTensor& x, const char* name,
                          const ConstHeadTensor& like, ChunkDTypes dtypes);

// CHECK: x is [B, H, T] of `like`.
void CheckChunkScalars(const ConstTensor& x, const char* name,
                       const ConstHeadTensor& like);

// Extents, documents and scale of a pair; a and b.
ChunkArguments PairOfChunks(const ConstHeadTensor& a, const char* a_name,
                            const ConstHeadTensor& b, const char* b_name,
                            const ChunkMask& mask, bool strict, float scale);
// CHECK: sums of rows like `a`.
void SetChunkSums(const RowSums& sums, const ConstHeadTensor& a,
                  ChunkArguments* in);

// Of the queries' dtype: bf16 as it is, fp32 as `of_float32`.
ChunkProducts ProductsOf(const ConstHeadTensor& a, ChunkProducts of_float32);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_VIEWS_H_
