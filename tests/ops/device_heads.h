// SPDX-License-Identifier: Apache-2.0
//
// Tensors in device memory for tests of the CUDA back end: bf16 per-head views
// in the middle of wider rows, as the columns of a fused projection are, and
// the values that a plain bf16 computation has in the same places.

#ifndef CUBIT_TESTS_OPS_DEVICE_HEADS_H_
#define CUBIT_TESTS_OPS_DEVICE_HEADS_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

#include "ops/reference_matrix.h"
#include "runtime/bfloat16.h"
#include "runtime/check.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace testing {

// A contiguous tensor on the device.
template <typename T>
class DeviceTensor {
 public:
  DeviceTensor() = default;
  explicit DeviceTensor(Shape shape) : shape_(shape) {
    absl::StatusOr<Buffer> buffer =
        Buffer::Allocate(shape.num_elements() * static_cast<int64_t>(sizeof(T)),
                         MemoryCategory::kData);
    CUBIT_CHECK(buffer.ok()) << buffer.status().message();
    buffer_ = *std::move(buffer);
  }
  DeviceTensor(Shape shape, const std::vector<T>& values)
      : DeviceTensor(shape) {
    Stream stream;
    CopyToDevice(buffer_.data(), values.data(), size_bytes(), stream);
    stream.Synchronize();
  }

  Tensor view() const {
    return Tensor(buffer_.data(), DTypeOf<T>::kValue, shape_);
  }
  std::vector<T> Read() const {
    std::vector<T> values(static_cast<size_t>(shape_.num_elements()));
    Stream stream;
    CopyToHost(values.data(), buffer_.data(), size_bytes(), stream);
    stream.Synchronize();
    return values;
  }

 private:
  int64_t size_bytes() const {
    return shape_.num_elements() * static_cast<int64_t>(sizeof(T));
  }

  Shape shape_;
  mutable Buffer buffer_;
};

inline float RoundToBFloat16(float x) { return ToFloat(ToBFloat16(x)); }

// Every value rounded to bf16.
inline reference::Matrix<float> Rounded(reference::Matrix<float> x) {
  for (float& value : x.values()) value = RoundToBFloat16(value);
  return x;
}

// [B, T, H, K] bf16 on the device from column `first` of rows that are NaN
// elsewhere.
class DeviceHeads {
 public:
  // Every value NaN. An odd `first` leaves rows at addresses that are no
  // multiples of four bytes.
  explicit DeviceHeads(HeadSize size, int64_t first = 16)
      : size_(size), first_(first) {
    const BFloat16 nan = ToBFloat16(std::numeric_limits<float>::quiet_NaN());
    host_.assign(static_cast<size_t>(shape().num_elements()), nan);
    device_ = DeviceTensor<BFloat16>(shape(), host_);
  }
  // Standard normal values times `stddev`, rounded to bf16.
  DeviceHeads(HeadSize size, absl::string_view name, double stddev = 1.0,
              int64_t first = 16)
      : DeviceHeads(size, first) {
    const HostTensor<float> values =
        RandomNormal(7, name, {size.batch, size.seq_len, inner()}, stddev);
    for (int64_t n = 0; n < size.batch * size.seq_len; ++n) {
      for (int64_t c = 0; c < inner(); ++c) {
        host_[static_cast<size_t>(n * width() + first_ + c)] =
            ToBFloat16(values[n * inner() + c]);
      }
    }
    device_ = DeviceTensor<BFloat16>(shape(), host_);
  }

  HeadTensor view() const {
    return HeadsOf(device_.view(), first_, size_.num_heads, size_.head_dim);
  }
  // Brings what the device has written to Head and RestIsPoisoned.
  void Read() { host_ = device_.Read(); }

  // Head `pair` = b H + h as [T, K].
  template <typename T>
  reference::Matrix<T> Head(int64_t pair) const {
    reference::Matrix<T> matrix(size_.seq_len, size_.head_dim);
    const int64_t b = pair / size_.num_heads;
    const int64_t column = first_ + pair % size_.num_heads * size_.head_dim;
    for (int64_t t = 0; t < size_.seq_len; ++t) {
      for (int64_t c = 0; c < size_.head_dim; ++c) {
        matrix(t, c) = static_cast<T>(ToFloat(host_[static_cast<size_t>(
            (b * size_.seq_len + t) * width() + column + c)]));
      }
    }
    return matrix;
  }
  // All heads, [B, H, T, K].
  std::vector<float> Values() const {
    std::vector<float> values;
    for (int64_t pair = 0; pair < size_.num_pairs(); ++pair) {
      Append(Head<float>(pair).values(), &values);
    }
    return values;
  }
  // True if nothing was written beside the heads.
  bool RestIsPoisoned() const {
    for (int64_t i = 0; i < shape().num_elements(); ++i) {
      const int64_t c = i % width();
      const bool inside = c >= first_ && c < first_ + inner();
      if (!inside && !std::isnan(ToFloat(host_[static_cast<size_t>(i)]))) {
        return false;
      }
    }
    return true;
  }

 private:
  int64_t inner() const { return size_.num_heads * size_.head_dim; }
  int64_t width() const { return 2 * first_ + inner(); }
  Shape shape() const { return {size_.batch, size_.seq_len, width()}; }

  HeadSize size_;
  int64_t first_;
  std::vector<BFloat16> host_;
  DeviceTensor<BFloat16> device_;
};

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_OPS_DEVICE_HEADS_H_
