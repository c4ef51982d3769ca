// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include "ops/cuda/memory_pass.cuh"
#include "ops/cuda/pointwise.cuh"
#include "ops/elementwise.h"

namespace cubit {
namespace {

using cuda::Elements;

struct AddFunction {
  __device__ float operator()(float a, float b) const { return a + b; }
};

struct ScaleFunction {
  float factor;
  __device__ float operator()(float a, float) const { return factor * a; }
};

struct FirstFunction {
  __device__ float operator()(float a, float) const { return a; }
};

constexpr int kSumThreads = 512;
// Of every device, so that the order of a sum does not depend on it; eight
// blocks for each of 132 multiprocessors, and a half-full last wave elsewhere.
constexpr int kSumBlocks = 1056;

// partial[b] = the sum of what block b sees: vectors of four elements, strided
// by the grid; block 0 takes those that are left.
__global__ void PartialSquaresKernel(const float* x, int64_t count,
                                     int64_t vectors, double* partial) {
  __shared__ double shared[kSumThreads / cuda::kWarpSize];
  const int64_t thread =
      static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  double sum = 0;
#pragma unroll 4
  for (int64_t v = thread; v < vectors;
       v += int64_t{kSumBlocks} * kSumThreads) {
    const cuda::Pack<float, 4> pack = cuda::LoadPack<float, 4>(x + 4 * v);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double value = static_cast<double>(pack.values[i]);
      sum += value * value;
    }
  }
  if (blockIdx.x == 0) {
    for (int64_t i = 4 * vectors + threadIdx.x; i < count; i += kSumThreads) {
      const double value = static_cast<double>(x[i]);
      sum += value * value;
    }
  }
  sum = cuda::BlockSum(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void TotalKernel(const double* partial, double* total) {
  __shared__ double shared[kSumThreads / cuda::kWarpSize];
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < kSumBlocks;
       i += kSumThreads) {
    sum += partial[i];
  }
  sum = cuda::BlockSum(sum, shared);
  if (threadIdx.x == 0) *total = sum;
}

}  // namespace

void Add(ConstTensor a, ConstTensor b, Tensor y, Stream& stream) {
  CUBIT_CHECK_EQ(a.shape(), b.shape());
  CUBIT_CHECK_EQ(a.shape(), y.shape());
  CUBIT_CHECK(a.dtype() == b.dtype() && a.dtype() == y.dtype())
      << Name(a.dtype()) << ", " << Name(b.dtype()) << ", " << Name(y.dtype());
  cuda::Dispatch(a.dtype(), [&](auto zero) {
    using T = decltype(zero);
    cuda::Pointwise(Elements<T>(a), Elements<T>(b), a.num_elements(),
                    AddFunction(), Elements<T>(y), stream);
  });
}

void AddInPlace(ConstTensor x, Tensor y, Stream& stream) {
  Add(x, y, y, stream);
}

void ScaleInPlace(float factor, Tensor x, Stream& stream) {
  cuda::Dispatch(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = Elements<T>(x);
    cuda::Pointwise(from, from, x.num_elements(), ScaleFunction{factor},
                    Elements<T>(x), stream);
  });
}

void Convert(ConstTensor x, Tensor y, Stream& stream) {
  CUBIT_CHECK_EQ(x.shape(), y.shape());
  cuda::Dispatch(x.dtype(), [&](auto x_zero) {
    cuda::Dispatch(y.dtype(), [&](auto y_zero) {
      using X = decltype(x_zero);
      using Y = decltype(y_zero);
      const X* from = Elements<X>(x);
      cuda::Pointwise(from, from, x.num_elements(), FirstFunction(),
                      Elements<Y>(y), stream);
    });
  });
}

void SumOfSquares(ConstTensor x, Tensor result, Stream& stream) {
  CUBIT_CHECK_EQ(result.num_elements(), 1);
  const float* x_data = x.data<float>();
  double* total = result.data<double>();
  double* partial = static_cast<double*>(
      CudaWorkspace(kSumBlocks * int64_t{sizeof(double)}, stream));
  const int64_t count = x.num_elements();
  const int64_t vectors = cuda::IsAligned16(x_data) ? count / 4 : 0;
  PartialSquaresKernel<<<kSumBlocks, kSumThreads, 0, CudaStream(stream)>>>(
      x_data, count, vectors, partial);
  CUBIT_CUDA_CHECK_LAUNCH();
  TotalKernel<<<1, kSumThreads, 0, CudaStream(stream)>>>(partial, total);
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace cubit
