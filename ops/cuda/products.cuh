// SPDX-License-Identifier: Apache-2.0
//
// Products of one warp on tensor cores: bf16 tensors, fp32 tensors as two bf16
// parts, as tf32, or as two tf32 parts. One interface:
//   Left    16 x 16 operand (m x k)     Right   16 x 8 operand (k x n)
// with fragments laid out as the bf16 instruction wants them, in all of them
// (see mma.cuh): lane (group, quad) of a Left has rows group, group + 8 and
// columns 2 quad, + 1, + 8, + 9; of a Right the same k and column group. So
// what FromAccumulators makes of a product can be the left operand of the next.

#ifndef CUBIT_OPS_CUDA_PRODUCTS_CUH_
#define CUBIT_OPS_CUDA_PRODUCTS_CUH_

#include <cstdint>

#include "ops/cuda/mma.cuh"
#include "ops/cuda/tile.cuh"

namespace cubit {
namespace cuda {

// (low, high) = bf16 parts whose sum is within 2^-17 of (x, y).
struct SplitPair {
  uint32_t high;
  uint32_t low;
};
__device__ __forceinline__ SplitPair Split(float x, float y) {
  const uint32_t high = PackBFloat16(x, y);
  const float x_rest = x - __uint_as_float(high << 16);
  const float y_rest = y - __uint_as_float(high & 0xffff0000u);
  return {high, PackBFloat16(x_rest, y_rest)};
}

// A left operand in two bf16 parts, whatever the tensors are: the diagonal
// blocks of a solve amplify errors most.
struct SplitLeft {
  uint32_t high[4];
  uint32_t low[4];

  // c0, c1: accumulators of columns 0-7 and 8-15.
  __device__ __forceinline__ static SplitLeft FromAccumulators(
      const float (&c0)[4], const float (&c1)[4]) {
    SplitLeft left;
    const SplitPair p[4] = {Split(c0[0], c0[1]), Split(c0[2], c0[3]),
                            Split(c1[0], c1[1]), Split(c1[2], c1[3])};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left.high[i] = p[i].high;
      left.low[i] = p[i].low;
    }
    return left;
  }
};

// c += a b for a b given as accumulators (16 x 8, fp32), both in two parts.
__device__ __forceinline__ void MultiplySplit(float (&c)[4], const SplitLeft& a,
                                              const float (&b)[4]) {
  const SplitPair b0 = Split(b[0], b[1]);
  const SplitPair b1 = Split(b[2], b[3]);
  const uint32_t high0 = TransposeMatrix(b0.high);
  const uint32_t high1 = TransposeMatrix(b1.high);
  MmaBFloat16(c, a.low, high0, high1);
  MmaBFloat16(c, a.high, TransposeMatrix(b0.low), TransposeMatrix(b1.low));
  MmaBFloat16(c, a.high, high0, high1);
}

// bf16 tensors.
struct BFloat16Products {
  using Element = __nv_bfloat16;
  struct Left {
    uint32_t x[4];
  };
  struct Right {
    uint32_t x[2];
  };

  // Rows [row, row + 16), columns [column, column + 16) of a tile.
  template <typename TileType>
  __device__ __forceinline__ static void LoadLeft(const Element* tile, int row,
                                                  int column, Left* a) {
    const int lane = threadIdx.x % 32;
    LoadMatrix4(
        SharedAddress(
            tile + TileType::Offset(row + lane % 16, column + (lane / 16) * 8)),
        a->x);
  }
  // b[0], b[1]: right operands with element (k, n) = tile (row + n, column + k)
  // for n < 8 and 8 <= n < 16: products with the transposed tile.
  template <typename TileType>
  __device__ __forceinline__ static void LoadRight(const Element* tile, int row,
                                                   int column, Right (&b)[2]) {
    const int lane = threadIdx.x % 32;
    uint32_t x[4];
    LoadMatrix4(
        SharedAddress(tile + TileType::Offset(row + lane % 8 + (lane / 16) * 8,
                                              column + ((lane / 8) % 2) * 8)),
        x);
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
  }
  // Element (k, n) = tile (row + k, column + n), likewise.
  template <typename TileType>
  __device__ __forceinline__ static void LoadRightDirect(const Element* tile,
                                                         int row, int column,
                                                         Right (&b)[2]) {
    const int lane = threadIdx.x % 32;
    uint32_t x[4];
    LoadMatrix4Transposed(
        SharedAddress(
            tile + TileType::Offset(row + lane % 16, column + (lane / 16) * 8)),
        x);
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
  }
  // c0, c1: accumulators of columns 0-7 and 8-15.
  __device__ __forceinline__ static Left FromAccumulators(
      const float (&c0)[4], const float (&c1)[4]) {
    return {{PackBFloat16(c0[0], c0[1]), PackBFloat16(c0[2], c0[3]),
             PackBFloat16(c1[0], c1[1]), PackBFloat16(c1[2], c1[3])}};
  }
  // An element as the products see it.
  __device__ __forceinline__ static float Round(float x) { return x; }
  // c += a b.
  __device__ __forceinline__ static void Multiply(float (&c)[4], const Left& a,
                                                  const Right& b) {
    MmaBFloat16(c, a.x, b.x[0], b.x[1]);
  }
};

// fp32 tensors: tiles hold fp32, `Parts` makes operands of them as they are
// loaded.
template <typename Parts>
struct Float32Products {
  using Element = float;
  using Left = typename Parts::Left;
  using Right = typename Parts::Right;

  template <typename TileType>
  __device__ __forceinline__ static void LoadLeft(const Element* tile, int row,
                                                  int column, Left* a) {
    const int lane = threadIdx.x % 32;
    float c[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = *reinterpret_cast<const float2*>(
          tile + TileType::Offset(row + lane / 4 + (i % 2) * 8,
                                  column + (lane % 4) * 2 + (i / 2) * 8));
      c[i / 2][(i % 2) * 2] = x.x;
      c[i / 2][(i % 2) * 2 + 1] = x.y;
    }
    *a = Parts::FromAccumulators(c[0], c[1]);
  }
  template <typename TileType>
  __device__ __forceinline__ static void LoadRight(const Element* tile, int row,
                                                   int column, Right (&b)[2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const Element* p = tile + TileType::Offset(row + n * 8 + lane / 4,
                                                 column + (lane % 4) * 2);
      const float2 x = *reinterpret_cast<const float2*>(p);
      const float2 y = *reinterpret_cast<const float2*>(p + 8);
      b[n] = Parts::MakeRight(x.x, x.y, y.x, y.y);
    }
  }
  template <typename TileType>
  __device__ __forceinline__ static void LoadRightDirect(const Element* tile,
                                                         int row, int column,
                                                         Right (&b)[2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const Element* p = tile + TileType::Offset(row + (lane % 4) * 2,
                                                 column + n * 8 + lane / 4);
      constexpr int kStride = TileType::kStride;
      b[n] = Parts::MakeRight(p[0], p[kStride], p[8 * kStride], p[9 * kStride]);
    }
  }
  __device__ __forceinline__ static Left FromAccumulators(
      const float (&c0)[4], const float (&c1)[4]) {
    return Parts::FromAccumulators(c0, c1);
  }
  __device__ __forceinline__ static float Round(float x) {
    return Parts::Round(x);
  }
  __device__ __forceinline__ static void Multiply(float (&c)[4], const Left& a,
                                                  const Right& b) {
    Parts::Multiply(c, a, b);
  }
};

// Each operand the sum of two bf16 numbers; the product of the small parts is
// left out.
struct BFloat16Parts {
  using Left = SplitLeft;
  struct Right {
    uint32_t high[2];
    uint32_t low[2];
  };
  __device__ __forceinline__ static Left FromAccumulators(
      const float (&c0)[4], const float (&c1)[4]) {
    return SplitLeft::FromAccumulators(c0, c1);
  }
  __device__ __forceinline__ static float Round(float x) { return x; }
  // Elements k = 2 quad, + 1, + 8, + 9 of the lane's column.
  __device__ __forceinline__ static Right MakeRight(float x0, float x1,
                                                    float x8, float x9) {
    const SplitPair p = Split(x0, x1);
    const SplitPair q = Split(x8, x9);
    return {{p.high, q.high}, {p.low, q.low}};
  }
  __device__ __forceinline__ static void Multiply(float (&c)[4], const Left& a,
                                                  const Right& b) {
    MmaBFloat16(c, a.low, b.high[0], b.high[1]);
    MmaBFloat16(c, a.high, b.low[0], b.low[1]);
    MmaBFloat16(c, a.high, b.high[0], b.high[1]);
  }
};

// Operands rounded to tf32. The instruction's k runs over 8 columns; which ones
// is free as long as both operands agree: here 2 quad, 2 quad + 1 of one half.
struct TFloat32Parts {
  struct Left {
    uint32_t x[2][4];
  };
  struct Right {
    uint32_t x[2][2];
  };
  __device__ __forceinline__ static Left FromAccumulators(
      const float (&c0)[4], const float (&c1)[4]) {
    return {{{RoundToTFloat32(c0[0]), RoundToTFloat32(c0[2]),
              RoundToTFloat32(c0[1]), RoundToTFloat32(c0[3])},
             {RoundToTFloat32(c1[0]), RoundToTFloat32(c1[2]),
              RoundToTFloat32(c1[1]), RoundToTFloat32(c1[3])}}};
  }
  __device__ __forceinline__ static float Round(float x) {
    return __uint_as_float(RoundToTFloat32(x));
  }
  __device__ __forceinline__ static Right MakeRight(float x0, float x1,
                                                    float x8, float x9) {
    return {{{RoundToTFloat32(x0), RoundToTFloat32(x1)},
             {RoundToTFloat32(x8), RoundToTFloat32(x9)}}};
  }
  __device__ __forceinline__ static void Multiply(float (&c)[4], const Left& a,
                                                  const Right& b) {
    MmaTFloat32(c, a.x[0], b.x[0][0], b.x[0][1]);
    MmaTFloat32(c, a.x[1], b.x[1][0], b.x[1][1]);
  }
};

// Each operand the sum of two tf32 numbers, in the instruction's order of k as
// in TFloat32Parts; the product of the small parts is left out: nearly the
// exactness of fp32 products.
struct TFloat32PairParts {
  struct Left {
    TFloat32Parts::Left high;
    TFloat32Parts::Left low;
  };
  struct Right {
    TFloat32Parts::Right high;
    TFloat32Parts::Right low;
  };
  // What rounding to tf32 leaves of x.
  __device__ __forceinline__ static float Rest(float x) {
    return x - TFloat32Parts::Round(x);
  }
  __device__ __forceinline__ static Left FromAccumulators(
      const float (&c0)[4], const float (&c1)[4]) {
    float rest[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rest[0][i] = Rest(c0[i]);
      rest[1][i] = Rest(c1[i]);
    }
    return {TFloat32Parts::FromAccumulators(c0, c1),
            TFloat32Parts::FromAccumulators(rest[0], rest[1])};
  }
  __device__ __forceinline__ static float Round(float x) { return x; }
  __device__ __forceinline__ static Right MakeRight(float x0, float x1,
                                                    float x8, float x9) {
    return {TFloat32Parts::MakeRight(x0, x1, x8, x9),
            TFloat32Parts::MakeRight(Rest(x0), Rest(x1), Rest(x8), Rest(x9))};
  }
  __device__ __forceinline__ static void Multiply(float (&c)[4], const Left& a,
                                                  const Right& b) {
    TFloat32Parts::Multiply(c, a.low, b.high);
    TFloat32Parts::Multiply(c, a.high, b.low);
    TFloat32Parts::Multiply(c, a.high, b.high);
  }
};

using BFloat16x3Products = Float32Products<BFloat16Parts>;
using TFloat32Products = Float32Products<TFloat32Parts>;
using TFloat32x3Products = Float32Products<TFloat32PairParts>;

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_PRODUCTS_CUH_
