// SPDX-License-Identifier: Apache-2.0
//
// y[i] = f(a[i], b[i]) over flat tensors, in fp32 whatever the element type.

#ifndef CUBIT_OPS_CUDA_POINTWISE_CUH_
#define CUBIT_OPS_CUDA_POINTWISE_CUH_

#include <cstdint>

#include "ops/cuda/memory_pass.cuh"

namespace cubit {
namespace cuda {

// Element types may differ; kWidth elements a thread, and `count` not a
// multiple of it leaves the last thread with fewer.
template <int kWidth, typename A, typename B, typename Y, typename F>
__global__ void PointwiseKernel(const A* a, const B* b, int64_t count, F f,
                                Y* y) {
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  if (first >= count) return;
  if (first + kWidth > count) {
    for (int64_t i = first; i < count; ++i) {
      y[i] = FromFloat<Y>(f(ToFloat(a[i]), ToFloat(b[i])));
    }
    return;
  }
  const Pack<A, kWidth> a_pack = LoadPack<A, kWidth>(a + first);
  const Pack<B, kWidth> b_pack = LoadPack<B, kWidth>(b + first);
  Pack<Y, kWidth> y_pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    y_pack.values[i] =
        FromFloat<Y>(f(ToFloat(a_pack.values[i]), ToFloat(b_pack.values[i])));
  }
  StorePack(y_pack, y + first);
}

// A function of `a` alone passes `a` for `b` too: the second load of the same
// address costs nothing.
template <typename A, typename B, typename Y, typename F>
void Pointwise(const A* a, const B* b, int64_t count, F f, Y* y,
               Stream& stream) {
  if (count == 0) return;
  constexpr int kThreads = 256;
  // 16 bytes of the narrowest type, twice that of a wider one.
  constexpr int kWidth = sizeof(A) == 2 || sizeof(Y) == 2 ? 8 : 4;
  const bool aligned = IsAligned16(a) && IsAligned16(b) && IsAligned16(y);
  const auto kernel = aligned ? &PointwiseKernel<kWidth, A, B, Y, F>
                              : &PointwiseKernel<1, A, B, Y, F>;
  const int64_t elements = int64_t{kThreads} * (aligned ? kWidth : 1);
  kernel<<<CeilDivide(count, elements), kThreads, 0, CudaStream(stream)>>>(
      a, b, count, f, y);
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_POINTWISE_CUH_
