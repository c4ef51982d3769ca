// SPDX-License-Identifier: Apache-2.0
//
// Element types of tensors, with the names that safetensors uses on disk.

#ifndef CUBIT_RUNTIME_DTYPE_H_
#define CUBIT_RUNTIME_DTYPE_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace cubit {

enum class DType { kFloat32, kFloat64, kBFloat16, kInt32, kInt64, kUInt8 };

// Bytes of one element.
constexpr int64_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kBFloat16:
      return 2;
    case DType::kUInt8:
      return 1;
  }
  return 0;
}

// "F32", "F64", "BF16", "I32", "I64", "U8": the words of the safetensors
// format.
constexpr absl::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "F32";
    case DType::kFloat64:
      return "F64";
    case DType::kBFloat16:
      return "BF16";
    case DType::kInt32:
      return "I32";
    case DType::kInt64:
      return "I64";
    case DType::kUInt8:
      return "U8";
  }
  return "?";
}

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType kValue = DType::kFloat32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType kValue = DType::kFloat64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType kValue = DType::kInt32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType kValue = DType::kInt64;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType kValue = DType::kUInt8;
};

}  // namespace cubit

#endif  // CUBIT_RUNTIME_DTYPE_H_
