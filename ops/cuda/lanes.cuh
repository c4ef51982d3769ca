// SPDX-License-Identifier: Apache-2.0
//
// Sums and maxima over lanes of a warp, the same in all of them. Each is a
// tree, so its order is fixed.

#ifndef CUBIT_OPS_CUDA_LANES_CUH_
#define CUBIT_OPS_CUDA_LANES_CUH_

namespace cubit {
namespace cuda {

constexpr int kWarpSize = 32;

// Over kLanes neighbours, a power of two.
template <int kLanes, typename T>
__device__ __forceinline__ T LaneSum(T x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  return x;
}
template <typename T>
__device__ __forceinline__ T WarpSum(T x) {
  return LaneSum<kWarpSize>(x);
}
__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  }
  return x;
}

// Over the four lanes that share a row of an accumulator (mma.cuh).
template <typename T>
__device__ __forceinline__ T QuadSum(T x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_LANES_CUH_
