// SPDX-License-Identifier: Apache-2.0
//
// Two neighbouring elements as floats. Of LoadPair and StorePair the first
// element is at an even place of memory that begins at a multiple of
// two elements.

#ifndef CUBIT_OPS_CUDA_PAIRS_CUH_
#define CUBIT_OPS_CUDA_PAIRS_CUH_

#include <cuda_bf16.h>

#include "ops/cuda/element.cuh"

namespace cubit {
namespace cuda {

__device__ __forceinline__ float2 LoadPair(const float* p) {
  return *reinterpret_cast<const float2*>(p);
}
__device__ __forceinline__ float2 LoadPair(const __nv_bfloat16* p) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(p));
}
__device__ __forceinline__ void StorePair(float* p, float x, float y) {
  *reinterpret_cast<float2*>(p) = make_float2(x, y);
}
__device__ __forceinline__ void StorePair(__nv_bfloat16* p, float x, float y) {
  *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(x, y);
}

// Elements `column` and column + 1 of a row, 0 from `end` on. `vectors`: pairs
// are aligned, and whole before or after `end`.
template <typename Element>
__device__ __forceinline__ float2 LoadPairBefore(const Element* row, int column,
                                                 int end, bool vectors) {
  if (vectors) {
    return column < end ? LoadPair(row + column) : make_float2(0, 0);
  }
  return make_float2(column < end ? ToFloat(row[column]) : 0,
                     column + 1 < end ? ToFloat(row[column + 1]) : 0);
}
// Stores elements `column` and column + 1 of a row, if they are before `end`.
// `vectors`: pairs are aligned, and whole before or after `end`.
template <typename Element>
__device__ __forceinline__ void StorePairBefore(Element* row, int column,
                                                int end, bool vectors, float x,
                                                float y) {
  if (vectors) {
    if (column < end) StorePair(row + column, x, y);
    return;
  }
  if (column < end) row[column] = FromFloat<Element>(x);
  if (column + 1 < end) row[column + 1] = FromFloat<Element>(y);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_PAIRS_CUH_
