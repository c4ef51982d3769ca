// SPDX-License-Identifier: Apache-2.0
//
// Elements as floats, one or two neighbours at once. Of LoadPair and StorePair
// the first element is at an even place of memory that begins at a multiple of
// two elements.

#ifndef CUBIT_OPS_CUDA_PAIRS_CUH_
#define CUBIT_OPS_CUDA_PAIRS_CUH_

#include <cuda_bf16.h>

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

__device__ __forceinline__ float ElementToFloat(float x) { return x; }
__device__ __forceinline__ float ElementToFloat(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void StoreElement(float x, float* target) {
  *target = x;
}
__device__ __forceinline__ void StoreElement(float x, __nv_bfloat16* target) {
  *target = __float2bfloat16_rn(x);
}

// Elements `column` and column + 1 of a row, 0 from `end` on. `vectors`: pairs
// are aligned, and whole before or after `end`.
template <typename Element>
__device__ __forceinline__ float2 LoadPairBefore(const Element* row, int column,
                                                 int end, bool vectors) {
  if (vectors) {
    return column < end ? LoadPair(row + column) : make_float2(0, 0);
  }
  return make_float2(column < end ? ElementToFloat(row[column]) : 0,
                     column + 1 < end ? ElementToFloat(row[column + 1]) : 0);
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
  if (column < end) StoreElement(x, row + column);
  if (column + 1 < end) StoreElement(y, row + column + 1);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_PAIRS_CUH_
