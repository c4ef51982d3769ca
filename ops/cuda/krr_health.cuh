// SPDX-License-Identifier: Apache-2.0
//
// Health of a KRR solve (KrrHealth in krr.h) in parts: maxima over the rows
// that one thread block sees, by the adjoint's kernel while it has them or by a
// pass of their own, and their reduction.

#ifndef CUBIT_OPS_CUDA_KRR_HEALTH_CUH_
#define CUBIT_OPS_CUDA_KRR_HEALTH_CUH_

#include <cuda_runtime.h>

namespace cubit {
namespace cuda {

// The numbers of a part, each the largest of its rows.
enum HealthNumber {
  kMinusDiagonal,  // -P_ii
  kLargestX,       // |x|
  kLargestV,       // |value_scale v|
  kHealthNumbers,
};

// Larger of two numbers; NaN is larger than everything.
__device__ __forceinline__ float Larger(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

// A number of a part of no rows: no entry of P is larger than 1.
__device__ __forceinline__ float HealthOfNoRow(int number) {
  return number == kMinusDiagonal ? -1.0f : 0.0f;
}

// result [3] from parts [num_parts, 3] and log_lambda [num_heads].
void ReduceHealth(const float* parts, int num_parts, const float* log_lambda,
                  int num_heads, float* result, cudaStream_t stream);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_KRR_HEALTH_CUH_
