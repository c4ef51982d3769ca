// SPDX-License-Identifier: Apache-2.0

#include "launch/export_values.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime/check.h"

namespace cubit {
namespace {

uint16_t RoundToBFloat16(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  // Rounding would carry some NaNs over into infinity.
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

std::vector<char> ExportedBytes(const Parameter& parameter, DType dtype,
                                Stream& stream) {
  CUBIT_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16);
  CUBIT_CHECK(parameter.shard.is_whole()) << parameter.name;
  std::vector<char> bytes(static_cast<size_t>(parameter.value.size_bytes()));
  CopyToHost(bytes.data(), parameter.value.raw(), parameter.value.size_bytes(),
             stream);
  stream.Synchronize();
  if (dtype == DType::kFloat32) return bytes;
  const size_t count = bytes.size() / sizeof(float);
  for (size_t i = 0; i < count; ++i) {
    float value = 0;
    std::memcpy(&value, &bytes[i * sizeof(value)], sizeof(value));
    const uint16_t rounded = RoundToBFloat16(value);
    std::memcpy(&bytes[i * sizeof(rounded)], &rounded, sizeof(rounded));
  }
  bytes.resize(count * sizeof(uint16_t));
  return bytes;
}

}  // namespace cubit
