// SPDX-License-Identifier: Apache-2.0
//
// Operands of 16 x 8 x 16 products on tensor cores in three precisions, behind
// one interface. A fragment is loaded from a row-major tile in shared memory or
// made from accumulators (mma.cuh describes them); a warp works together.
//
//   a  16 x 16: rows of the tile are rows of the product
//   b  16 x 8:  from a tile whose rows are columns of the product ("rows"), or
//               from one whose rows are summed over ("columns")

#ifndef CUBIT_OPS_CUDA_FRAGMENT_CUH_
#define CUBIT_OPS_CUDA_FRAGMENT_CUH_

#include <cstdint>

#include <cuda_bf16.h>

#include "ops/cuda/mma.cuh"

namespace cubit {
namespace cuda {

// How products are formed; sums are fp32.
enum class Product {
  kBFloat16,    // tiles of bf16
  kBFloat16x3,  // tiles of fp32, each number split into two of bf16
  kTFloat32,    // tiles of fp32, rounded
};

template <Product kProduct>
struct FragmentA;
template <Product kProduct>
struct FragmentB;

template <>
struct FragmentA<Product::kBFloat16> {
  uint32_t values[4];
};
template <>
struct FragmentB<Product::kBFloat16> {
  uint32_t values[2];
};
template <>
struct FragmentA<Product::kBFloat16x3> {
  uint32_t high[4];
  uint32_t low[4];
};
template <>
struct FragmentB<Product::kBFloat16x3> {
  uint32_t high[2];
  uint32_t low[2];
};
// Two products of depth 8. The instruction's k index 2 q + p stands for the
// element that the bf16 instruction has there, so that both share one layout.
template <>
struct FragmentA<Product::kTFloat32> {
  uint32_t values[2][4];
};
template <>
struct FragmentB<Product::kTFloat32> {
  uint32_t values[2][2];
};

// Bits of (x, y) as bf16, and what their rounding left out.
__device__ __forceinline__ void SplitBFloat16(float x, float y, uint32_t* high,
                                              uint32_t* low) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  *high = reinterpret_cast<const uint32_t&>(pair);
  const float2 rounded = __bfloat1622float2(pair);
  *low = PackBFloat16(x - rounded.x, y - rounded.y);
}

// `x` in the order of the registers: row group, columns 2 quad and + 1; row
// group + 8; then both at columns + 8. That is also the order of two adjacent
// accumulators.
__device__ __forceinline__ void Make(const float (&x)[8],
                                     FragmentA<Product::kBFloat16>* a) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a->values[i] = PackBFloat16(x[2 * i], x[2 * i + 1]);
  }
}
__device__ __forceinline__ void Make(const float (&x)[8],
                                     FragmentA<Product::kBFloat16x3>* a) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    SplitBFloat16(x[2 * i], x[2 * i + 1], &a->high[i], &a->low[i]);
  }
}
__device__ __forceinline__ void Make(const float (&x)[8],
                                     FragmentA<Product::kTFloat32>* a) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int first = 4 * half;
    a->values[half][0] = RoundToTFloat32(x[first]);
    a->values[half][1] = RoundToTFloat32(x[first + 2]);
    a->values[half][2] = RoundToTFloat32(x[first + 1]);
    a->values[half][3] = RoundToTFloat32(x[first + 3]);
  }
}

// `x`: summed index 2 quad, 2 quad + 1, 2 quad + 8, 2 quad + 9.
__device__ __forceinline__ void Make(const float (&x)[4],
                                     FragmentB<Product::kBFloat16x3>* b) {
  SplitBFloat16(x[0], x[1], &b->high[0], &b->low[0]);
  SplitBFloat16(x[2], x[3], &b->high[1], &b->low[1]);
}
__device__ __forceinline__ void Make(const float (&x)[4],
                                     FragmentB<Product::kTFloat32>* b) {
#pragma unroll
  for (int i = 0; i < 4; ++i) b->values[i / 2][i % 2] = RoundToTFloat32(x[i]);
}

// a from two adjacent accumulators (16 columns).
template <Product kProduct>
__device__ __forceinline__ void MakeFromSums(const float (&left)[4],
                                             const float (&right)[4],
                                             FragmentA<kProduct>* a) {
  const float x[8] = {left[0],  left[1],  left[2],  left[3],
                      right[0], right[1], right[2], right[3]};
  Make(x, a);
}

// Loads of a: `tile` points at the first row and column of the operand, rows
// are `stride` apart.
__device__ __forceinline__ void LoadA(const __nv_bfloat16* tile, int stride,
                                      FragmentA<Product::kBFloat16>* a) {
  const int lane = threadIdx.x % 32;
  LoadMatrix4(SharedAddress(tile + (lane % 16) * stride + lane / 16 * 8),
              a->values);
}
template <Product kProduct>
__device__ __forceinline__ void LoadA(const float* tile, int stride,
                                      FragmentA<kProduct>* a) {
  const int lane = threadIdx.x % 32;
  const float* first = tile + lane / 4 * stride + lane % 4 * 2;
  float x[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = *reinterpret_cast<const float2*>(
        first + i % 2 * 8 * stride + i / 2 * 8);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
  Make(x, a);
}

// Loads of two adjacent b (16 columns of the product) from a tile whose rows
// are columns of the product.
__device__ __forceinline__ void LoadBFromRows(
    const __nv_bfloat16* tile, int stride,
    FragmentB<Product::kBFloat16> (&b)[2]) {
  const int lane = threadIdx.x % 32;
  const int row = lane % 8 + lane / 16 * 8;
  uint32_t r[4];
  LoadMatrix4(SharedAddress(tile + row * stride + lane / 8 % 2 * 8), r);
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i / 2].values[i % 2] = r[i];
}
template <Product kProduct>
__device__ __forceinline__ void LoadBFromRows(const float* tile, int stride,
                                              FragmentB<kProduct> (&b)[2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float* row = tile + (n * 8 + lane / 4) * stride + lane % 4 * 2;
    const float2 first = *reinterpret_cast<const float2*>(row);
    const float2 second = *reinterpret_cast<const float2*>(row + 8);
    const float x[4] = {first.x, first.y, second.x, second.y};
    Make(x, &b[n]);
  }
}

// The same from a tile whose rows are summed over.
__device__ __forceinline__ void LoadBFromColumns(
    const __nv_bfloat16* tile, int stride,
    FragmentB<Product::kBFloat16> (&b)[2]) {
  const int lane = threadIdx.x % 32;
  uint32_t r[4];
  LoadMatrix4Transposed(
      SharedAddress(tile + lane % 16 * stride + lane / 16 * 8), r);
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i / 2].values[i % 2] = r[i];
}
template <Product kProduct>
__device__ __forceinline__ void LoadBFromColumns(const float* tile, int stride,
                                                 FragmentB<kProduct> (&b)[2]) {
  const int lane = threadIdx.x % 32;
  const float* first = tile + lane % 4 * 2 * stride + lane / 4;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float x[4] = {first[n * 8], first[n * 8 + stride],
                        first[n * 8 + 8 * stride], first[n * 8 + 9 * stride]};
    Make(x, &b[n]);
  }
}

// c += a b.
__device__ __forceinline__ void Multiply(
    const FragmentA<Product::kBFloat16>& a,
    const FragmentB<Product::kBFloat16>& b, float (&c)[4]) {
  MmaBFloat16(c, a.values, b.values[0], b.values[1]);
}
__device__ __forceinline__ void Multiply(
    const FragmentA<Product::kBFloat16x3>& a,
    const FragmentB<Product::kBFloat16x3>& b, float (&c)[4]) {
  MmaBFloat16(c, a.low, b.high[0], b.high[1]);
  MmaBFloat16(c, a.high, b.low[0], b.low[1]);
  MmaBFloat16(c, a.high, b.high[0], b.high[1]);
}
__device__ __forceinline__ void Multiply(
    const FragmentA<Product::kTFloat32>& a,
    const FragmentB<Product::kTFloat32>& b, float (&c)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    MmaTFloat32(c, a.values[half], b.values[half][0], b.values[half][1]);
  }
}

template <Product kProduct>
struct ElementOf {
  using Type = float;
};
template <>
struct ElementOf<Product::kBFloat16> {
  using Type = __nv_bfloat16;
};

__device__ __forceinline__ float AsFloat(float x) { return x; }
__device__ __forceinline__ float AsFloat(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void Store(float x, float* target) { *target = x; }
__device__ __forceinline__ void Store(float x, __nv_bfloat16* target) {
  *target = __float2bfloat16_rn(x);
}
// `x` as an Element stores it.
template <typename Element>
__device__ __forceinline__ float Rounded(float x) {
  Element element;
  Store(x, &element);
  return AsFloat(element);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_FRAGMENT_CUH_
