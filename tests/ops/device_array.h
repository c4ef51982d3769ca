// SPDX-License-Identifier: Apache-2.0
//
// Tensors in the device's own memory, for tests of a GPU back end in bf16: host
// values rounded on the way in, and the measure of what an op may lose.

#ifndef CUBIT_TESTS_OPS_DEVICE_ARRAY_H_
#define CUBIT_TESTS_OPS_DEVICE_ARRAY_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "runtime/bfloat16.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace testing {

// `values` rounded to bf16, as floats.
inline std::vector<float> Rounded(std::vector<float> values) {
  for (float& value : values) value = ToFloat(ToBFloat16(value));
  return values;
}

// Standard normal values rounded to bf16.
inline std::vector<float> RandomBFloat16(absl::string_view name, int64_t count,
                                         double stddev = 1.0) {
  return Rounded(RandomNormal(11, name, {count}, stddev).values());
}

// A tensor in device memory that owns it; in and out as floats (int32 for
// tokens).
class DeviceArray {
 public:
  // `lead` elements lie before the tensor: what comes of slices, an address
  // that is aligned to nothing more than an element.
  DeviceArray(DType dtype, Shape shape, int64_t lead = 0)
      : lead_bytes_(lead * SizeOf(dtype)), tensor_(nullptr, dtype, shape) {
    absl::StatusOr<Buffer> buffer = Buffer::Allocate(
        lead_bytes_ + tensor_.size_bytes() + 16, MemoryCategory::kWorkspace);
    CUBIT_CHECK(buffer.ok()) << std::string(buffer.status().message());
    buffer_ = *std::move(buffer);
    tensor_ =
        Tensor(static_cast<char*>(buffer_.data()) + lead_bytes_, dtype, shape);
    if (dtype == DType::kInt32) return;
    // What an op forgets to write shows.
    Fill(std::vector<float>(static_cast<size_t>(shape.num_elements()),
                            std::numeric_limits<float>::quiet_NaN()));
  }
  DeviceArray(DType dtype, Shape shape, const std::vector<float>& values,
              int64_t lead = 0)
      : DeviceArray(dtype, shape, lead) {
    Fill(values);
  }
  explicit DeviceArray(const std::vector<int32_t>& ids)
      : DeviceArray(DType::kInt32, {static_cast<int64_t>(ids.size())}) {
    Copy(ids.data());
  }

  Tensor view() const { return tensor_; }

  void Fill(const std::vector<float>& values) {
    CUBIT_CHECK_EQ(static_cast<int64_t>(values.size()), tensor_.num_elements());
    if (tensor_.dtype() == DType::kFloat32) {
      Copy(values.data());
      return;
    }
    std::vector<BFloat16> rounded;
    for (const float value : values) rounded.push_back(ToBFloat16(value));
    Copy(rounded.data());
  }

  std::vector<float> values() const {
    const size_t count = static_cast<size_t>(tensor_.num_elements());
    std::vector<float> result(count);
    Stream stream;
    if (tensor_.dtype() == DType::kFloat32) {
      CopyToHost(result.data(), tensor_.raw(), tensor_.size_bytes(), stream);
      stream.Synchronize();
      return result;
    }
    std::vector<BFloat16> narrow(count);
    CopyToHost(narrow.data(), tensor_.raw(), tensor_.size_bytes(), stream);
    stream.Synchronize();
    for (size_t i = 0; i < count; ++i) result[i] = ToFloat(narrow[i]);
    return result;
  }

 private:
  void Copy(const void* source) {
    Stream stream;
    CopyToDevice(tensor_.raw(), source, tensor_.size_bytes(), stream);
    stream.Synchronize();
  }

  int64_t lead_bytes_;
  Tensor tensor_;
  Buffer buffer_;
};

// Passes if `got` is at most twice as far from `exact`, the reference in double
// on the same bf16 inputs, as `plain`, the reference in float rounded to the
// type of the result. `besides` is a relative error that it may have in
// addition.
inline ::testing::AssertionResult IsWithinBFloat16Budget(
    const DeviceArray& got, const std::vector<float>& plain,
    const std::vector<double>& exact, double besides = 0) {
  const bool narrow = got.view().dtype() == DType::kBFloat16;
  const double budget =
      2 * RelativeError(ToDouble(narrow ? Rounded(plain) : plain), exact) +
      static_cast<double>(std::numeric_limits<float>::epsilon());
  return IsClose(ToDouble(got.values()), exact, budget + besides);
}

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_OPS_DEVICE_ARRAY_H_
