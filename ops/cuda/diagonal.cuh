// SPDX-License-Identifier: Apache-2.0
//
// The diagonal of a 64 x 64 tile of accumulators (mma.cuh) of four warps.

#ifndef CUBIT_OPS_CUDA_DIAGONAL_CUH_
#define CUBIT_OPS_CUDA_DIAGONAL_CUH_

namespace cubit {
namespace cuda {

// Whether this lane holds the diagonal's elements of its two rows.
__device__ __forceinline__ bool HoldsDiagonal() {
  const int lane = threadIdx.x % 32;
  return lane % 4 == lane / 8;
}
// The diagonal's element of the lane's upper (half = 0) or lower row, where
// HoldsDiagonal(); `warp` is the warp's number of the four. By selection:
// registers have no index, and to ask every element whether it is the one takes
// ten times the instructions.
__device__ __forceinline__ float DiagonalElement(const float (&c)[8][4],
                                                 int warp, int half) {
  float even = c[half][2 * half];
  float odd = c[half][2 * half + 1];
#pragma unroll
  for (int w = 1; w < 4; ++w) {
    even = warp == w ? c[2 * w + half][2 * half] : even;
    odd = warp == w ? c[2 * w + half][2 * half + 1] : odd;
  }
  return threadIdx.x / 4 % 2 == 0 ? even : odd;
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_DIAGONAL_CUH_
