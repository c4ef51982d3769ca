// SPDX-License-Identifier: Apache-2.0
//
// Operands of 16 x 16 x 16 products on tensor cores, read from row-major tiles
// in shared memory, for tensors of bf16 and of fp32. Kernels written on these
// serve both: fp32 values go in as two tf32 terms each, whose three larger
// products give nearly the exactness of fp32 sums (3 x 11 bits of mantissa).

#ifndef CUBIT_OPS_CUDA_OPERANDS_CUH_
#define CUBIT_OPS_CUDA_OPERANDS_CUH_

#include <cstdint>

#include <cuda_bf16.h>

#include "ops/cuda/mma.cuh"

namespace cubit {
namespace cuda {

// For element type T:
//   A                 the left operand, 16 rows x 16 (k)
//   B                 the right operand, 16 (k) x 16 columns
//   LoadA             a(i, k) = tile[row + i][column + k]
//   LoadRows          b(k, j) = tile[row + j][column + k]: tile^T
//   LoadColumns       b(k, j) = tile[row + k][column + j]
//   FromAccumulators  the left operand made of two accumulators 16 x 8
//   Multiply          c0, c1 (16 x 8 each) += a b
// `stride` is that of the tile's rows, in elements; kPadding elements behind
// every row keep the loads free of bank conflicts.
template <typename T>
struct Operands;

template <>
struct Operands<__nv_bfloat16> {
  using Element = __nv_bfloat16;
  static constexpr int kPadding = 8;

  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[4];
  };

  static __device__ __forceinline__ A LoadA(const Element* tile, int stride,
                                            int row, int column) {
    const int lane = threadIdx.x % 32;
    A a;
    LoadMatrix4(SharedAddress(tile + (row + lane % 16) * stride + column +
                              lane / 16 * 8),
                a.r);
    return a;
  }

  static __device__ __forceinline__ B LoadRows(const Element* tile, int stride,
                                               int row, int column) {
    const int lane = threadIdx.x % 32;
    B b;
    LoadMatrix4(SharedAddress(tile + (row + lane % 8 + lane / 16 * 8) * stride +
                              column + lane / 8 % 2 * 8),
                b.r);
    return b;
  }

  static __device__ __forceinline__ B LoadColumns(const Element* tile,
                                                  int stride, int row,
                                                  int column) {
    const int lane = threadIdx.x % 32;
    B b;
    LoadMatrix4Transposed(SharedAddress(tile + (row + lane % 16) * stride +
                                        column + lane / 16 * 8),
                          b.r);
    return b;
  }

  static __device__ __forceinline__ A FromAccumulators(const float (&c0)[4],
                                                       const float (&c1)[4]) {
    A a;
    a.r[0] = PackBFloat16(c0[0], c0[1]);
    a.r[1] = PackBFloat16(c0[2], c0[3]);
    a.r[2] = PackBFloat16(c1[0], c1[1]);
    a.r[3] = PackBFloat16(c1[2], c1[3]);
    return a;
  }

  static __device__ __forceinline__ void Multiply(float (&c0)[4],
                                                  float (&c1)[4], const A& a,
                                                  const B& b) {
    MmaBFloat16(c0, a.r, b.r[0], b.r[1]);
    MmaBFloat16(c1, a.r, b.r[2], b.r[3]);
  }
};

// The order of k within eight columns is free as long as both operands share
// it: columns 2 q and 2 q + 1 go where the instruction has q and q + 4, so that
// neighbours are loaded together and accumulators become operands in place.
template <>
struct Operands<float> {
  using Element = float;
  static constexpr int kPadding = 8;

  struct A {
    uint32_t high[2][4];
    uint32_t low[2][4];
  };
  struct B {
    uint32_t high[2][2][2];  // [column / 8][k / 8]
    uint32_t low[2][2][2];
  };

  static __device__ __forceinline__ void Put(float x, uint32_t* high,
                                             uint32_t* low) {
    *high = RoundToTFloat32(x);
    *low = RoundToTFloat32(x - __uint_as_float(*high));
  }

  static __device__ __forceinline__ A LoadA(const Element* tile, int stride,
                                            int row, int column) {
    const int group = threadIdx.x % 32 / 4;
    const int quad = threadIdx.x % 4;
    A a;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 pair = *reinterpret_cast<const float2*>(
            tile + (row + half * 8 + group) * stride + column + step * 8 +
            quad * 2);
        Put(pair.x, &a.high[step][half], &a.low[step][half]);
        Put(pair.y, &a.high[step][half + 2], &a.low[step][half + 2]);
      }
    }
    return a;
  }

  static __device__ __forceinline__ B LoadRows(const Element* tile, int stride,
                                               int row, int column) {
    const int group = threadIdx.x % 32 / 4;
    const int quad = threadIdx.x % 4;
    B b;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const float2 pair = *reinterpret_cast<const float2*>(
            tile + (row + half * 8 + group) * stride + column + step * 8 +
            quad * 2);
        Put(pair.x, &b.high[half][step][0], &b.low[half][step][0]);
        Put(pair.y, &b.high[half][step][1], &b.low[half][step][1]);
      }
    }
    return b;
  }

  static __device__ __forceinline__ B LoadColumns(const Element* tile,
                                                  int stride, int row,
                                                  int column) {
    const int group = threadIdx.x % 32 / 4;
    const int quad = threadIdx.x % 4;
    B b;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Put(tile[(row + step * 8 + quad * 2 + i) * stride + column +
                   half * 8 + group],
              &b.high[half][step][i], &b.low[half][step][i]);
        }
      }
    }
    return b;
  }

  static __device__ __forceinline__ A FromAccumulators(const float (&c0)[4],
                                                       const float (&c1)[4]) {
    A a;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const float(&c)[4] = step == 0 ? c0 : c1;
      Put(c[0], &a.high[step][0], &a.low[step][0]);
      Put(c[2], &a.high[step][1], &a.low[step][1]);
      Put(c[1], &a.high[step][2], &a.low[step][2]);
      Put(c[3], &a.high[step][3], &a.low[step][3]);
    }
    return a;
  }

  static __device__ __forceinline__ void Multiply(float (&c0)[4],
                                                  float (&c1)[4], const A& a,
                                                  const B& b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float(&c)[4] = half == 0 ? c0 : c1;
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        MmaTFloat32(c, a.low[step], b.high[half][step][0],
                    b.high[half][step][1]);
        MmaTFloat32(c, a.high[step], b.low[half][step][0],
                    b.low[half][step][1]);
        MmaTFloat32(c, a.high[step], b.high[half][step][0],
                    b.high[half][step][1]);
      }
    }
  }
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_OPERANDS_CUH_
