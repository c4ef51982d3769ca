// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include <cuda_bf16.h>

#include "ops/convert_heads.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;  // enough to hide memory's latency

__device__ float ToFloat(float x) { return x; }
__device__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void Store(float x, float* y) { *y = x; }
__device__ void Store(float x, __nv_bfloat16* y) { *y = __float2bfloat16(x); }

// A view with its strides, as the kernel needs it.
template <typename T>
struct View {
  T* data;
  int64_t batch_stride, seq_stride, head_stride;
};

// Elements in the order of [B, T, H, K], so that neighbours lie side by side.
template <typename From, typename To>
__global__ void Convert(View<const From> x, View<To> y, int64_t count,
                        int seq_len, int num_heads, int head_dim) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
       i < count; i += step) {
    const int64_t k = i % head_dim;
    const int64_t h = i / head_dim % num_heads;
    const int64_t row = i / head_dim / num_heads;
    const int64_t t = row % seq_len;
    const int64_t b = row / seq_len;
    const float value = ToFloat(
        x.data[b * x.batch_stride + t * x.seq_stride + h * x.head_stride + k]);
    Store(
        value,
        &y.data[b * y.batch_stride + t * y.seq_stride + h * y.head_stride + k]);
  }
}

template <typename T, typename HeadTensorType>
View<T> ViewOf(const HeadTensorType& x) {
  return {static_cast<T*>(x.data), x.batch_stride, x.seq_stride, x.head_stride};
}

template <typename From, typename To>
void Launch(const ConstHeadTensor& x, const HeadTensor& y, Stream& stream) {
  const int64_t count = x.batch * x.seq_len * x.num_heads * x.head_dim;
  if (count == 0) return;
  const int64_t blocks =
      std::min<int64_t>((count + kThreads - 1) / kThreads,
                        kBlocksPerMultiprocessor * NumMultiprocessors());
  Convert<From, To>
      <<<static_cast<unsigned>(blocks), kThreads, 0, CudaStream(stream)>>>(
          ViewOf<const From>(x), ViewOf<To>(y), count,
          static_cast<int>(x.seq_len), static_cast<int>(x.num_heads),
          static_cast<int>(x.head_dim));
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace

void ConvertHeads(ConstHeadTensor x, HeadTensor y, Stream& stream) {
  CUBIT_CHECK(x.batch == y.batch && x.seq_len == y.seq_len &&
              x.num_heads == y.num_heads && x.head_dim == y.head_dim);
  const bool down = x.dtype == DType::kFloat32 && y.dtype == DType::kBFloat16;
  CUBIT_CHECK(down ||
              (x.dtype == DType::kBFloat16 && y.dtype == DType::kFloat32));
  if (down) {
    Launch<float, __nv_bfloat16>(x, y, stream);
  } else {
    Launch<__nv_bfloat16, float>(x, y, stream);
  }
}

}  // namespace cubit
