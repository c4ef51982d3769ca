// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <vector>

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "runtime/check.h"
#include "runtime/cuda_check.h"
#include "runtime/memory.h"
#include "tests/benchmarks/measure_cuda.h"

namespace cubit {
namespace {

Buffer Allocate(int64_t bytes) {
  absl::StatusOr<Buffer> buffer =
      Buffer::Allocate(bytes, MemoryCategory::kWorkspace);
  CUBIT_CHECK(buffer.ok()) << buffer.status().message();
  return *std::move(buffer);
}

// Uniform in [-sqrt(3), sqrt(3)], by a multiplicative hash of the index.
__device__ float RandomValue(uint64_t seed, int64_t i) {
  uint64_t x = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15ull + seed;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return (static_cast<float>(x >> 40) * 0x1p-23f - 1.0f) * 1.7320508f;
}

template <typename T>
__global__ void FillKernel(uint64_t seed, int64_t count, T* values) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
       i < count; i += stride) {
    values[i] = static_cast<T>(RandomValue(seed, i));
  }
}

}  // namespace

double MedianGpuSeconds(double seconds, Stream& stream,
                        absl::FunctionRef<void()> call) {
  for (int i = 0; i < 3; ++i) call();
  std::vector<double> times;
  double total = 0;
  Event start;
  Event end;
  while (total < seconds || times.size() < 5) {
    start.Record(stream);
    call();
    end.Record(stream);
    end.Synchronize();
    times.push_back(Event::SecondsBetween(start, end));
    total += times.back();
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2,
                   times.end());
  return times[times.size() / 2];
}

double MatmulCeiling(double seconds, Stream& stream) {
  constexpr int kSize = 8192;
  constexpr int64_t kElements = static_cast<int64_t>(kSize) * kSize;
  const Shape shape = {kSize, kSize};
  Buffer a = Allocate(kElements * 2);
  Buffer b = Allocate(kElements * 2);
  Buffer c = Allocate(kElements * 2);
  FillRandom(1, Tensor(a.data(), DType::kBFloat16, shape), stream);
  FillRandom(2, Tensor(b.data(), DType::kBFloat16, shape), stream);
  cublasHandle_t handle = nullptr;
  CUBIT_CHECK(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS);
  CUBIT_CHECK(cublasSetStream(handle, CudaStream(stream)) ==
              CUBLAS_STATUS_SUCCESS);
  const float one = 1;
  const float zero = 0;
  const double median = MedianGpuSeconds(seconds, stream, [&] {
    CUBIT_CHECK(cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, kSize, kSize,
                             kSize, &one, a.data(), CUDA_R_16BF, kSize,
                             b.data(), CUDA_R_16BF, kSize, &zero, c.data(),
                             CUDA_R_16BF, kSize, CUBLAS_COMPUTE_32F,
                             CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
  });
  CUBIT_CHECK(cublasDestroy(handle) == CUBLAS_STATUS_SUCCESS);
  return 2.0 * kSize * kSize * kSize / median;
}

double CopyCeiling(double seconds, Stream& stream) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  Buffer source = Allocate(kBytes);
  Buffer target = Allocate(kBytes);
  const double median = MedianGpuSeconds(seconds, stream, [&] {
    CopyOnDevice(target.data(), source.data(), kBytes, stream);
  });
  return 2.0 * kBytes / median;
}

void FillRandom(uint64_t seed, const Tensor& tensor, Stream& stream) {
  constexpr int kThreads = 256;
  const int blocks = 8 * NumMultiprocessors();
  const int64_t count = tensor.num_elements();
  if (tensor.dtype() == DType::kFloat32) {
    FillKernel<<<blocks, kThreads, 0, CudaStream(stream)>>>(
        seed, count, static_cast<float*>(tensor.raw()));
  } else {
    CUBIT_CHECK(tensor.dtype() == DType::kBFloat16);
    FillKernel<<<blocks, kThreads, 0, CudaStream(stream)>>>(
        seed, count, static_cast<__nv_bfloat16*>(tensor.raw()));
  }
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace cubit
