// SPDX-License-Identifier: Apache-2.0
//
// Inverse of a 64 x 64 unit upper-triangular matrix in shared memory, by four
// warps: inverses of the 16 x 16 diagonal blocks by substitution in fp32, then
// twice inv([A B; 0 C]) = [inv(A), -inv(A) B inv(C); 0, inv(C)] on tensor cores
// in BF16x3: this is where a solve amplifies errors most.

#ifndef CUBIT_OPS_CUDA_UNIT_UPPER_CUH_
#define CUBIT_OPS_CUDA_UNIT_UPPER_CUH_

#include "ops/cuda/products.cuh"
#include "ops/cuda/tile.cuh"

namespace cubit {
namespace cuda {

constexpr int kUnitUpperSize = 64;
using UnitUpperTile = Tile<float, kUnitUpperSize, kUnitUpperSize>;
constexpr int kUnitUpperStride = UnitUpperTile::kStride;

// One warp inverts the 16 x 16 block at `m` (rows begin at multiples of 16
// bytes); lane c has column c.
__device__ __forceinline__ void InvertDiagonalBlock(float* m) {
  const int column = threadIdx.x % 16;
  float inverse[16];
#pragma unroll
  for (int r = 15; r >= 0; --r) {
    float sum = r == column ? 1.0f : 0.0f;
    // The newest row last: the others' part does not wait for it.
#pragma unroll
    for (int k = 12; k + 3 > r; k -= 4) {
      const float4 row =
          *reinterpret_cast<const float4*>(m + r * kUnitUpperStride + k);
      sum = fmaf(-row.w, inverse[k + 3], sum);
      if (k + 2 > r) sum = fmaf(-row.z, inverse[k + 2], sum);
      if (k + 1 > r) sum = fmaf(-row.y, inverse[k + 1], sum);
      if (k > r) sum = fmaf(-row.x, inverse[k], sum);
    }
    inverse[r] = sum;
  }
  __syncwarp();
  if (threadIdx.x % 32 < 16) {
#pragma unroll
    for (int r = 0; r < 16; ++r) m[r * kUnitUpperStride + column] = inverse[r];
  }
}

// result = -(rows of A) B (columns of C): 16 rows of `a`, kDepth x kDepth `b`,
// kDepth x 16 `c`.
template <int kDepth>
__device__ __forceinline__ void TripleProduct(const float* a, const float* b,
                                              const float* c,
                                              float (&result)[2][4]) {
  using Products = BFloat16x3Products;
  constexpr int kBlocks = kDepth / 16;
  float sums[2 * kBlocks][4] = {};
#pragma unroll
  for (int k = 0; k < kBlocks; ++k) {
    Products::Left left;
    Products::LoadLeft<UnitUpperTile>(a, 0, 16 * k, &left);
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
      Products::Right right[2];
      Products::LoadRightDirect<UnitUpperTile>(b, 16 * k, 16 * n, right);
      Products::Multiply(sums[2 * n], left, right[0]);
      Products::Multiply(sums[2 * n + 1], left, right[1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) result[0][i] = result[1][i] = 0;
#pragma unroll
  for (int k = 0; k < kBlocks; ++k) {
    const Products::Left left =
        Products::FromAccumulators(sums[2 * k], sums[2 * k + 1]);
    Products::Right right[2];
    Products::LoadRightDirect<UnitUpperTile>(c, 16 * k, 0, right);
    Products::Multiply(result[0], left, right[0]);
    Products::Multiply(result[1], left, right[1]);
  }
}

__device__ __forceinline__ void StoreNegative(const float (&sums)[2][4],
                                              float* target) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* pair = target + (lane / 4 + 8 * half) * kUnitUpperStride + 8 * n +
                    lane % 4 * 2;
      pair[0] = -sums[n][2 * half];
      pair[1] = -sums[n][2 * half + 1];
    }
  }
}

// Inverts m in place; m is complete (zeros below, ones on the diagonal) and
// visible to all. Ends with a barrier. 128 threads.
__device__ __forceinline__ void InvertUnitUpper(float* m) {
  constexpr int kStride = kUnitUpperStride;
  const auto at = [m](int row, int column) {
    return m + row * kStride + column;
  };
  const int warp = threadIdx.x / 32;
  InvertDiagonalBlock(at(16 * warp, 16 * warp));
  __syncthreads();
  float sums[2][4];
  if (warp < 2) {
    const int first = 32 * warp;
    TripleProduct<16>(at(first, first), at(first, first + 16),
                      at(first + 16, first + 16), sums);
    __syncwarp();
    StoreNegative(sums, at(first, first + 16));
  }
  __syncthreads();
  const int row = warp % 2 * 16;
  const int column = 32 + warp / 2 * 16;
  TripleProduct<32>(at(row, 0), at(0, 32), at(32, column), sums);
  __syncthreads();
  StoreNegative(sums, at(row, column));
  __syncthreads();
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_UNIT_UPPER_CUH_
