// SPDX-License-Identifier: Apache-2.0
//
// What benchmarks of the CUDA back end share: times by events, the ceilings of
// the device, random tensors.

#ifndef CUBIT_TESTS_BENCHMARKS_MEASURE_CUDA_H_
#define CUBIT_TESTS_BENCHMARKS_MEASURE_CUDA_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"

namespace cubit {

// "auto", "warp" or "warpgroup" (ops/cuda/solve_engines.h), for all solves from
// now on.
// InvalidArgument: another word; FailedPrecondition: no such GPU.
absl::Status UseSolveEngine(absl::string_view name);

// Median time of one call over at least `seconds` of calls, by events around
// each, after some that are not counted. The call only issues work.
double MedianGpuSeconds(double seconds, Stream& stream,
                        absl::FunctionRef<void()> call);

// What the GPU reaches, measured here, each for `seconds`.
struct Ceilings {
  double bytes_per_second = 0;  // read and written, by a copy of 1 GiB
  double flops_per_second = 0;  // bf16 product of 8192^3 on random values
};
Ceilings MeasureCeilings(double seconds, Stream& stream);

// Fills `tensor` (bf16 or fp32) with uniform values of mean 0 and deviation
// `stddev`, a function of `seed`.
void FillRandom(uint64_t seed, double stddev, const Tensor& tensor,
                Stream& stream);

// A device tensor that owns its memory. Exits if there is not enough.
class DeviceTensor {
 public:
  // Values of FillRandom.
  DeviceTensor(DType dtype, Shape shape, double stddev, uint64_t seed);
  // int32.
  explicit DeviceTensor(const std::vector<int32_t>& values);

  Tensor view() const { return tensor_; }

 private:
  DeviceTensor(DType dtype, Shape shape);

  Buffer buffer_;
  Tensor tensor_;
};

}  // namespace cubit

#endif  // CUBIT_TESTS_BENCHMARKS_MEASURE_CUDA_H_
