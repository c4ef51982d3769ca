// SPDX-License-Identifier: Apache-2.0
//
// Elements of fp32 or bf16 tensors as the fp32 numbers that are computed with.

#ifndef CUBIT_OPS_CUDA_ELEMENT_CUH_
#define CUBIT_OPS_CUDA_ELEMENT_CUH_

#include <cuda_bf16.h>

namespace cubit {
namespace cuda {

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <typename T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 FromFloat<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ELEMENT_CUH_
