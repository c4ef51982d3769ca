// SPDX-License-Identifier: Apache-2.0
//
// GELU and the sigmoid of activations.h on one fp32 value, to the precision of
// the elements' type T: a few ulp of fp32, or, where the result is rounded to
// bf16, the special-function unit's approximations (2 ulp of fp32 each).

#ifndef CUBIT_OPS_CUDA_ACTIVATION_MATH_CUH_
#define CUBIT_OPS_CUDA_ACTIVATION_MATH_CUH_

#include <cuda_bf16.h>

#include "ops/cuda/mma.cuh"

namespace cubit {
namespace cuda {

// exp(x); exp(-inf) = 0.
template <typename T>
__device__ __forceinline__ float Exp(float x);
template <>
__device__ __forceinline__ float Exp<float>(float x) {
  return expf(x);
}
template <>
__device__ __forceinline__ float Exp<__nv_bfloat16>(float x) {
  return Exp2(kLog2E * x);
}

// 1 / x by the special-function unit alone; 1 / inf = 0.
__device__ __forceinline__ float Reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

template <typename T>
__device__ __forceinline__ float Sigmoid(float x);
template <>
__device__ __forceinline__ float Sigmoid<float>(float x) {
  return 1.0f / (1.0f + expf(-x));
}
template <>
__device__ __forceinline__ float Sigmoid<__nv_bfloat16>(float x) {
  return Reciprocal(1.0f + Exp2(-kLog2E * x));
}

constexpr float kTwoSqrtTwoOverPi = 1.59576912f;
constexpr float kGeluCubic = 0.044715f;

// Beyond |x| = 16 the sigmoid is 0 or 1 in every bit; the bound keeps x^3 from
// overflowing. NaN passes.
__device__ __forceinline__ float GeluBounded(float x) {
  x = x < -16.0f ? -16.0f : x;
  return x > 16.0f ? 16.0f : x;
}

// 2u, u the argument of tanh: GELU(x) = x sigmoid(2u).
__device__ __forceinline__ float TwiceGeluInner(float bounded) {
  constexpr float kCubed = kTwoSqrtTwoOverPi * kGeluCubic;
  return bounded * fmaf(kCubed, bounded * bounded, kTwoSqrtTwoOverPi);
}

template <typename T>
__device__ __forceinline__ float Gelu(float x) {
  return x * Sigmoid<T>(TwiceGeluInner(GeluBounded(x)));
}

template <typename T>
__device__ __forceinline__ float GeluDerivative(float x) {
  const float bounded = GeluBounded(x);
  const float s = Sigmoid<T>(TwiceGeluInner(bounded));
  constexpr float kSquared = 3.0f * kTwoSqrtTwoOverPi * kGeluCubic;
  const float slope = fmaf(kSquared, bounded * bounded, kTwoSqrtTwoOverPi);
  const float product = bounded * s;
  return fmaf(fmaf(-product, s, product), slope, s);  // s + x s (1 - s) slope
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ACTIVATION_MATH_CUH_
