// SPDX-License-Identifier: Apache-2.0
//
// Products of a warp's 16 rows with tiles in shared memory (products.cuh):
// scores, and what weights make of the other side's rows. Four warps that are a
// warpgroup may multiply their 64 rows together (warpgroup.cuh).

#ifndef CUBIT_OPS_CUDA_WARP_PRODUCTS_CUH_
#define CUBIT_OPS_CUDA_WARP_PRODUCTS_CUH_

#include <type_traits>

#include "ops/cuda/products.cuh"
#include "ops/cuda/tile.cuh"
#include "ops/cuda/warpgroup.cuh"

namespace cubit {
namespace cuda {

// bf16 tensors, multiplied by a warpgroup: all of its lanes call the functions
// below together, and whatever was written to a tile has been shown to the
// tensor cores before the barrier that handed it over. Tiles have 64 rows and
// are swizzled; warp w has the own rows [16 w, 16 w + 16).
struct WarpgroupProducts : BFloat16Products {};

template <typename Products>
constexpr bool kByWarpgroup = std::is_same_v<Products, WarpgroupProducts>;

// Behind the wait for copies: the tiles are everybody's.
template <typename Products>
__device__ __forceinline__ void ShareTiles() {
  if constexpr (kByWarpgroup<Products>) ShowToTensorCores();
  __syncthreads();
}

template <int kCount>
__device__ __forceinline__ void SetZero(float (&c)[kCount][4]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) c[n][e] = 0;
  }
}

// Starts c = rows [own_row, own_row + 64) of `own` times the transpose of
// `streamed`, by a warpgroup, within a batch of its products.
template <typename OwnTile, typename StreamedTile>
__device__ __forceinline__ void StartTransposed(
    const typename OwnTile::Element* own, int own_row,
    const typename StreamedTile::Element* streamed,
    float (&c)[StreamedTile::kRows / 8][4]) {
#pragma unroll
  for (int k = 0; k < OwnTile::kDim; k += 16) {
    MultiplyWarpgroup(c, RowsOperand<OwnTile>(own, own_row, k),
                      RowsOperand<StreamedTile>(streamed, 0, k), k > 0);
  }
}

// The left operands of own rows, for tiles that are multiplied by many others:
// a warpgroup whose products read both operands from shared memory waits for
// it.
template <typename Products, typename OwnTile>
struct OwnOperand {
  typename Products::Left parts[OwnTile::kDim / 16];

  __device__ __forceinline__ void Load(const typename Products::Element* own,
                                       int own_row) {
#pragma unroll
    for (int k = 0; k < OwnTile::kDim / 16; ++k) {
      Products::template LoadLeft<OwnTile>(own, own_row, 16 * k, &parts[k]);
    }
  }
};
template <typename OwnTile, typename StreamedTile, typename Products>
__device__ __forceinline__ void StartTransposed(
    const OwnOperand<Products, OwnTile>& own,
    const typename StreamedTile::Element* streamed,
    float (&c)[StreamedTile::kRows / 8][4]) {
#pragma unroll
  for (int k = 0; k < OwnTile::kDim / 16; ++k) {
    MultiplyWarpgroup</*kColumns=*/false>(
        c, own.parts[k].x, RowsOperand<StreamedTile>(streamed, 0, 16 * k),
        k > 0);
  }
}

// c = rows [own_row, own_row + 16) of `own` times the transpose of `streamed`.
template <typename Products, typename OwnTile, typename StreamedTile>
__device__ __forceinline__ void MultiplyTransposed(
    const typename Products::Element* own, int own_row,
    const typename Products::Element* streamed,
    float (&c)[StreamedTile::kRows / 8][4]) {
  static_assert(!kByWarpgroup<Products>, "StartTransposed");
  SetZero(c);
#pragma unroll
  for (int k = 0; k < OwnTile::kDim; k += 16) {
    typename Products::Left a;
    Products::template LoadLeft<OwnTile>(own, own_row, k, &a);
#pragma unroll
    for (int n = 0; n < StreamedTile::kRows / 16; ++n) {
      typename Products::Right b[2];
      Products::template LoadRight<StreamedTile>(streamed, 16 * n, k, b);
      Products::Multiply(c[2 * n], a, b[0]);
      Products::Multiply(c[2 * n + 1], a, b[1]);
    }
  }
}

// sums += weights tile.
template <typename Products, typename TileType>
__device__ __forceinline__ void MultiplyAdd(
    const float (&weights)[TileType::kRows / 8][4],
    const typename Products::Element* tile,
    float (&sums)[TileType::kDim / 8][4]) {
  if constexpr (kByWarpgroup<Products>) {
    typename Products::Left a[TileType::kRows / 16];
#pragma unroll
    for (int k = 0; k < TileType::kRows / 16; ++k) {
      a[k] = Products::FromAccumulators(weights[2 * k], weights[2 * k + 1]);
    }
    HoldAccumulators(sums);
    FenceProducts();
#pragma unroll
    for (int k = 0; k < TileType::kRows / 16; ++k) {
      MultiplyTileRows<TileType>(sums, a[k].x, tile, 16 * k, /*add=*/true);
    }
    CommitProducts();
    WaitForProducts<0>();
    HoldAccumulators(sums);
    return;
  }
#pragma unroll
  for (int k = 0; k < TileType::kRows / 16; ++k) {
    const typename Products::Left a =
        Products::FromAccumulators(weights[2 * k], weights[2 * k + 1]);
#pragma unroll
    for (int n = 0; n < TileType::kDim / 16; ++n) {
      typename Products::Right b[2];
      Products::template LoadRightDirect<TileType>(tile, 16 * k, 16 * n, b);
      Products::Multiply(sums[2 * n], a, b[0]);
      Products::Multiply(sums[2 * n + 1], a, b[1]);
    }
  }
}

// sums += columns [begin, end) of rows [row, row + 16) of `left` times these
// rows of `right`, both fp32, in BF16x3. begin, end: multiples of 16.
template <typename LeftTile, typename RightTile>
__device__ __forceinline__ void MultiplyAddExactly(
    const float* left, int row, int begin, int end, const float* right,
    float (&sums)[RightTile::kDim / 8][4]) {
  using Exact = BFloat16x3Products;
  for (int k = begin; k < end; k += 16) {
    Exact::Left a;
    Exact::LoadLeft<LeftTile>(left, row, k, &a);
#pragma unroll
    for (int n = 0; n < RightTile::kDim / 16; ++n) {
      Exact::Right b[2];
      Exact::LoadRightDirect<RightTile>(right, k, 16 * n, b);
      Exact::Multiply(sums[2 * n], a, b[0]);
      Exact::Multiply(sums[2 * n + 1], a, b[1]);
    }
  }
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_WARP_PRODUCTS_CUH_
