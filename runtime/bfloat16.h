// SPDX-License-Identifier: Apache-2.0
//
// bfloat16 on the host: storage and conversion. Device code uses its own type
// with the same bits.

#ifndef CUBIT_RUNTIME_BFLOAT16_H_
#define CUBIT_RUNTIME_BFLOAT16_H_

#include <cstdint>
#include <cstring>

#include "runtime/dtype.h"

namespace cubit {

struct BFloat16 {
  uint16_t bits = 0;
};

template <>
struct DTypeOf<BFloat16> {
  static constexpr DType kValue = DType::kBFloat16;
};

// Exact.
inline float ToFloat(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// To nearest, ties to even; NaN stays NaN.
inline BFloat16 ToBFloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  BFloat16 result;
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    result.bits = static_cast<uint16_t>((bits >> 16) | 0x40u);
    return result;
  }
  bits += 0x7fffu + ((bits >> 16) & 1u);
  result.bits = static_cast<uint16_t>(bits >> 16);
  return result;
}

}  // namespace cubit

#endif  // CUBIT_RUNTIME_BFLOAT16_H_
