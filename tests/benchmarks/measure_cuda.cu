// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "ops/cuda/solve_engines.h"
#include "ops/matmul.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"
#include "runtime/memory.h"
#include "tests/benchmarks/measure_cuda.h"

namespace cubit {

absl::Status UseSolveEngine(absl::string_view name) {
  if (name == "auto") return absl::OkStatus();
  if (name == "warp") {
    cuda::SetSolveEngine(cuda::SolveEngine::kWarp);
    return absl::OkStatus();
  }
  if (name != "warpgroup") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--solve_engine is \"", name, "\"; wanted auto, warp or warpgroup"));
  }
  if (!cuda::HasWarpgroupSolve()) {
    return absl::FailedPreconditionError(
        "--solve_engine=warpgroup needs a GPU of compute capability 9.0 and a "
        "build for sm_90a");
  }
  cuda::SetSolveEngine(cuda::SolveEngine::kWarpgroup);
  return absl::OkStatus();
}
namespace {

// Uniform in [-sqrt(3), sqrt(3)], by a multiplicative hash of the index.
__device__ float RandomValue(uint64_t seed, int64_t i) {
  uint64_t x = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15ull + seed;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return (static_cast<float>(x >> 40) * 0x1p-23f - 1.0f) * 1.7320508f;
}

template <typename T>
__global__ void FillKernel(uint64_t seed, float stddev, int64_t count,
                           T* values) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
       i < count; i += stride) {
    values[i] = static_cast<T>(stddev * RandomValue(seed, i));
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

Ceilings MeasureCeilings(double seconds, Stream& stream) {
  constexpr int64_t kElements = int64_t{1} << 28;
  constexpr int64_t kEdge = 8192;
  Ceilings ceilings;
  {
    const DeviceTensor source(DType::kFloat32, {kElements}, 1.0, 1);
    const DeviceTensor target(DType::kFloat32, {kElements}, 1.0, 2);
    const int64_t bytes = source.view().size_bytes();
    ceilings.bytes_per_second =
        2.0 * static_cast<double>(bytes) /
        MedianGpuSeconds(seconds, stream, [&] {
          CopyOnDevice(target.view().raw(), source.view().raw(), bytes, stream);
        });
  }
  const Shape square = {kEdge, kEdge};
  const DeviceTensor a(DType::kBFloat16, square, 1.0, 3);
  const DeviceTensor b(DType::kBFloat16, square, 1.0, 4);
  const DeviceTensor c(DType::kBFloat16, square, 1.0, 5);
  ceilings.flops_per_second =
      2.0 * std::pow(static_cast<double>(kEdge), 3) /
      MedianGpuSeconds(seconds, stream, [&] {
        LinearForward(a.view(), b.view(), {}, {}, c.view(), stream);
      });
  return ceilings;
}

void FillRandom(uint64_t seed, double stddev, const Tensor& tensor,
                Stream& stream) {
  constexpr int kThreads = 256;
  const int blocks = 8 * NumMultiprocessors();
  const int64_t count = tensor.num_elements();
  if (tensor.dtype() == DType::kFloat32) {
    FillKernel<<<blocks, kThreads, 0, CudaStream(stream)>>>(
        seed, static_cast<float>(stddev), count,
        static_cast<float*>(tensor.raw()));
  } else {
    CUBIT_CHECK(tensor.dtype() == DType::kBFloat16);
    FillKernel<<<blocks, kThreads, 0, CudaStream(stream)>>>(
        seed, static_cast<float>(stddev), count,
        static_cast<__nv_bfloat16*>(tensor.raw()));
  }
  CUBIT_CUDA_CHECK_LAUNCH();
}

DeviceTensor::DeviceTensor(DType dtype, Shape shape) {
  absl::StatusOr<Buffer> buffer = Buffer::Allocate(
      shape.num_elements() * SizeOf(dtype), MemoryCategory::kData);
  if (!buffer.ok()) {
    std::fprintf(stderr, "%s\n",
                 std::string(buffer.status().message()).c_str());
    std::exit(1);
  }
  buffer_ = *std::move(buffer);
  tensor_ = Tensor(buffer_.data(), dtype, shape);
}

DeviceTensor::DeviceTensor(DType dtype, Shape shape, double stddev,
                           uint64_t seed)
    : DeviceTensor(dtype, shape) {
  Stream stream;
  FillRandom(seed, stddev, tensor_, stream);
  stream.Synchronize();
}

DeviceTensor::DeviceTensor(const std::vector<int32_t>& values)
    : DeviceTensor(DType::kInt32, {static_cast<int64_t>(values.size())}) {
  Stream stream;
  CopyToDevice(tensor_.raw(), values.data(), tensor_.size_bytes(), stream);
  stream.Synchronize();
}

}  // namespace cubit
