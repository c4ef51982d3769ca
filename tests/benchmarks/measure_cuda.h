// SPDX-License-Identifier: Apache-2.0
//
// What benchmarks of the CUDA back end share: times by events, the ceilings of
// the device, random tensors.

#ifndef CUBIT_TESTS_BENCHMARKS_MEASURE_CUDA_H_
#define CUBIT_TESTS_BENCHMARKS_MEASURE_CUDA_H_

#include <cstdint>

#include "absl/functional/function_ref.h"

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Median time of one call over at least `seconds` of calls, by events around
// each, after some that are not counted. The call only issues work.
double MedianGpuSeconds(double seconds, Stream& stream,
                        absl::FunctionRef<void()> call);

// FLOP/s of a bf16 product 8192 x 8192 x 8192 on random values: what no matrix
// kernel is expected to exceed.
double MatmulCeiling(double seconds, Stream& stream);

// Bytes read and written by second of a large copy on the device.
double CopyCeiling(double seconds, Stream& stream);

// Fills `tensor` (bf16 or fp32) with values of mean 0 and variance 1, a
// function of `seed`.
void FillRandom(uint64_t seed, const Tensor& tensor, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_TESTS_BENCHMARKS_MEASURE_CUDA_H_
