// SPDX-License-Identifier: Apache-2.0
//
// What GPU benchmarks share: time of what a stream does, the ceilings of the
// GPU, device tensors with random values.

#ifndef CUBIT_TESTS_BENCHMARKS_CUDA_MEASURE_H_
#define CUBIT_TESTS_BENCHMARKS_CUDA_MEASURE_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"

#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"

namespace cubit {

// Median time on the GPU of what one `call` puts on the stream, of `runs` after
// two that are not counted.
double MedianDeviceSeconds(int runs, Stream& stream,
                           absl::FunctionRef<void()> call);

// What the GPU reaches, measured here: bytes read and written a second by a
// copy of 1 GiB; FLOP/s of a bf16 product of 8192^3 on random values.
struct Ceilings {
  double bytes_per_second = 0;
  double flops_per_second = 0;
};
Ceilings MeasureCeilings(Stream& stream);

// A device tensor that owns its memory. Exits if there is not enough.
class DeviceTensor {
 public:
  // Normal values of `stddev` (fp32 or bf16), a function of `seed`.
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

#endif  // CUBIT_TESTS_BENCHMARKS_CUDA_MEASURE_H_
