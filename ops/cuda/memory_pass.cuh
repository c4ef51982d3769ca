// SPDX-License-Identifier: Apache-2.0
//
// What the CUDA passes over memory share: 16-byte accesses of fp32 or bf16
// elements that are computed with in fp32, sums over a block in a fixed
// order, and the choice of a kernel by element type.

#ifndef CUBIT_OPS_CUDA_MEMORY_PASS_CUH_
#define CUBIT_OPS_CUDA_MEMORY_PASS_CUH_

#include <cstdint>

#include <cuda_bf16.h>

#include "ops/cuda/element.cuh"
#include "ops/cuda/lanes.cuh"
#include "runtime/cuda_check.h"
#include "runtime/tensor.h"

namespace cubit {
namespace cuda {

// Elements of 16 bytes.
template <typename T>
constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

// kWidth adjacent elements: 16 bytes, or one element where rows have an odd
// length.
template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
  T values[kWidth];
};

template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> LoadPack(const T* source) {
  return *reinterpret_cast<const Pack<T, kWidth>*>(source);
}
template <typename T, int kWidth>
__device__ __forceinline__ void StorePack(const Pack<T, kWidth>& pack,
                                          T* target) {
  *reinterpret_cast<Pack<T, kWidth>*>(target) = pack;
}

// A Pack that is kept in registers as it was loaded, 32 bits each: an array of
// 16-bit elements is spread over twice as many.
template <typename T, int kWidth>
class RawPack {
 public:
  static constexpr int kBytes = kWidth * static_cast<int>(sizeof(T));
  static constexpr int kWords = kBytes / 4;
  static_assert(kBytes % 4 == 0, "whole words");

  __device__ __forceinline__ void Load(const T* source) {
    const auto pack = *reinterpret_cast<const Pack<uint32_t, kWords>*>(source);
#pragma unroll
    for (int i = 0; i < kWords; ++i) words_[i] = pack.values[i];
  }
  __device__ __forceinline__ float Get(int i) const {
    if (sizeof(T) == 4) return __uint_as_float(words_[i]);
    const uint32_t word = words_[i / 2];
    return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
  }
  // What was computed from the elements so far is not kept for later.
  __device__ __forceinline__ void Forget() {
#pragma unroll
    for (int i = 0; i < kWords; ++i) asm volatile("" : "+r"(words_[i]));
  }

 private:
  uint32_t words_[kWords];
};

// One element, where rows have an odd length.
template <typename T>
class RawPack<T, 1> {
 public:
  __device__ __forceinline__ void Load(const T* source) { value_ = *source; }
  __device__ __forceinline__ float Get(int) const { return ToFloat(value_); }
  __device__ __forceinline__ void Forget() {}

 private:
  T value_;
};

// Sum over a block of whole warps, the same in all threads; `shared` has an
// element for each warp and is free again at the next barrier.
template <typename T>
__device__ __forceinline__ T BlockSum(T x, T* shared) {
  x = WarpSum(x);
  const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  if (num_warps == 1) return x;
  if (threadIdx.x % kWarpSize == 0) shared[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  T total = shared[0];
  for (int warp = 1; warp < num_warps; ++warp) total += shared[warp];
  __syncthreads();
  return total;
}

inline bool IsAligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

inline int CeilDivide(int64_t a, int64_t b) {
  return static_cast<int>((a + b - 1) / b);
}

// Device code's type of the elements of `dtype`, fp32 or bf16, handed to
// `body` as a value: Dispatch(x.dtype(), [&](auto zero) { using T =
// decltype(zero); ... }). CHECK: it is one of the two.
template <typename Body>
void Dispatch(DType dtype, Body body) {
  CUBIT_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16)
      << "dtype " << Name(dtype);
  if (dtype == DType::kFloat32) {
    body(float());
  } else {
    body(__nv_bfloat16());
  }
}

// The elements, whose dtype the caller knows.
template <typename T>
const T* Elements(const ConstTensor& tensor) {
  return static_cast<const T*>(tensor.raw());
}
template <typename T>
T* Elements(const Tensor& tensor) {
  return static_cast<T*>(tensor.raw());
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_MEMORY_PASS_CUH_
