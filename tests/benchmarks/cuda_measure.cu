// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "runtime/cuda_check.h"
#include "tests/benchmarks/cuda_measure.h"

namespace cubit {

double MedianDeviceSeconds(int runs, Stream& stream,
                           absl::FunctionRef<void()> call) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  CUBIT_CUDA_CHECK(cudaEventCreate(&begin));
  CUBIT_CUDA_CHECK(cudaEventCreate(&end));
  for (int i = 0; i < 2; ++i) call();
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) {
    CUBIT_CUDA_CHECK(cudaEventRecord(begin, CudaStream(stream)));
    call();
    CUBIT_CUDA_CHECK(cudaEventRecord(end, CudaStream(stream)));
    CUBIT_CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CUBIT_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    seconds.push_back(1e-3 * static_cast<double>(milliseconds));
  }
  CUBIT_CUDA_CHECK(cudaEventDestroy(begin));
  CUBIT_CUDA_CHECK(cudaEventDestroy(end));
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

Ceilings MeasureCeilings(Stream& stream) {
  constexpr int kRuns = 10;
  constexpr int64_t kElements = int64_t{1} << 28;
  constexpr int64_t kEdge = 8192;
  Ceilings ceilings;
  {
    const DeviceTensor source(DType::kFloat32, {kElements}, 1.0, 1);
    const DeviceTensor target(DType::kFloat32, {kElements}, 1.0, 2);
    const int64_t bytes = source.view().size_bytes();
    ceilings.bytes_per_second =
        2.0 * static_cast<double>(bytes) /
        MedianDeviceSeconds(kRuns, stream, [&] {
          CopyOnDevice(target.view().raw(), source.view().raw(), bytes, stream);
        });
  }
  const Shape square = {kEdge, kEdge};
  const DeviceTensor a(DType::kBFloat16, square, 1.0, 3);
  const DeviceTensor b(DType::kBFloat16, square, 1.0, 4);
  const DeviceTensor c(DType::kBFloat16, square, 1.0, 5);
  ceilings.flops_per_second =
      2.0 * std::pow(static_cast<double>(kEdge), 3) /
      MedianDeviceSeconds(kRuns, stream, [&] {
        LinearForward(a.view(), b.view(), {}, {}, c.view(), stream);
      });
  return ceilings;
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

// 2^20 random numbers again and again: random enough for the power that a
// product draws.
DeviceTensor::DeviceTensor(DType dtype, Shape shape, double stddev,
                           uint64_t seed)
    : DeviceTensor(dtype, shape) {
  constexpr int64_t kPattern = int64_t{1} << 20;
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0.0f, static_cast<float>(stddev));
  const int64_t count = shape.num_elements();
  std::vector<float> pattern(static_cast<size_t>(std::min(kPattern, count)));
  for (float& value : pattern) value = normal(engine);
  Stream stream;
  if (count <= kPattern && dtype == DType::kFloat32) {
    CopyToDevice(tensor_.raw(), pattern.data(), tensor_.size_bytes(), stream);
    stream.Synchronize();
    return;
  }
  const int64_t pattern_count = static_cast<int64_t>(pattern.size());
  absl::StatusOr<Buffer> buffer = Buffer::Allocate(
      pattern_count * SizeOf(DType::kFloat32), MemoryCategory::kData);
  CUBIT_CHECK(buffer.ok()) << std::string(buffer.status().message());
  const Tensor source(buffer->data(), DType::kFloat32, {pattern_count});
  CopyToDevice(source.raw(), pattern.data(), source.size_bytes(), stream);
  const Tensor flat = tensor_.Reshape({count});
  for (int64_t begin = 0; begin < count; begin += pattern_count) {
    const int64_t length = std::min(pattern_count, count - begin);
    Convert(source.Slice(0, length), flat.Slice(begin, length), stream);
  }
  stream.Synchronize();
}

DeviceTensor::DeviceTensor(const std::vector<int32_t>& values)
    : DeviceTensor(DType::kInt32, {static_cast<int64_t>(values.size())}) {
  Stream stream;
  CopyToDevice(tensor_.raw(), values.data(), tensor_.size_bytes(), stream);
  stream.Synchronize();
}

}  // namespace cubit
