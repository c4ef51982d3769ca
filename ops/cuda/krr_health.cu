// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/krr_health.cuh"
#include "ops/cuda/row_lanes.cuh"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
namespace {

// By one thread block: the order does not matter to a maximum.
__global__ void __launch_bounds__(kRowThreads)
    ReduceHealthKernel(const float* parts, int num_parts,
                       const float* log_lambda, int num_heads, float* result) {
  float largest[kHealthNumbers + 1];
#pragma unroll
  for (int i = 0; i < kHealthNumbers; ++i) largest[i] = HealthOfNoRow(i);
  float& largest_log_lambda = largest[kHealthNumbers];
  largest_log_lambda = log_lambda[0];
#pragma unroll 4
  for (int part = threadIdx.x; part < num_parts; part += kRowThreads) {
    for (int i = 0; i < kHealthNumbers; ++i) {
      largest[i] = Larger(parts[part * kHealthNumbers + i], largest[i]);
    }
  }
  for (int h = threadIdx.x; h < num_heads; h += kRowThreads) {
    largest_log_lambda = Larger(log_lambda[h], largest_log_lambda);
  }
  ReduceOverBlock(largest, [](float a, float b) { return Larger(a, b); });
  if (threadIdx.x != 0) return;
  result[0] = -largest[kMinusDiagonal];
  result[1] =
      largest[kLargestV] == 0 ? 0 : largest[kLargestX] / largest[kLargestV];
  result[2] = expf(largest_log_lambda);
}

}  // namespace

void ReduceHealth(const float* parts, int num_parts, const float* log_lambda,
                  int num_heads, float* result, cudaStream_t stream) {
  ReduceHealthKernel<<<1, kRowThreads, 0, stream>>>(
      parts, num_parts, log_lambda, num_heads, result);
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace cuda
}  // namespace cubit
