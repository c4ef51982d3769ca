// SPDX-License-Identifier: Apache-2.0

#include "runtime/philox.h"

#include <cmath>

#include "runtime/digest.h"

namespace cubit {
namespace {

constexpr double kTwoPi = 6.283185307179586476925286766559;

uint32_t Low(uint64_t x) { return static_cast<uint32_t>(x); }
uint32_t High(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

}  // namespace

Philox::Philox(uint64_t seed, absl::string_view name)
    : key_{Low(seed), High(seed)} {
  const uint64_t hash = Xxh3_64(name.data(), name.size());
  stream_ = {Low(hash), High(hash)};
}

std::array<uint32_t, 4> Philox::Encipher(std::array<uint32_t, 4> counter,
                                         std::array<uint32_t, 2> key) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = kMultiplier0 * counter[0];
    const uint64_t product1 = kMultiplier1 * counter[2];
    counter = {High(product1) ^ counter[1] ^ key[0], Low(product1),
               High(product0) ^ counter[3] ^ key[1], Low(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

std::array<uint32_t, 4> Philox::Block(uint64_t index) const {
  return Encipher({Low(index), High(index), stream_[0], stream_[1]}, key_);
}

uint64_t Philox::Bits(uint64_t index) const {
  const std::array<uint32_t, 4> block = Block(index);
  return static_cast<uint64_t>(block[1]) << 32 | block[0];
}

double Philox::Uniform(uint64_t index) const {
  return static_cast<double>(Bits(index) >> 11) * 0x1.0p-53;
}

double Philox::Normal(uint64_t index) const {
  const std::array<uint32_t, 4> block = Block(index);
  const uint64_t a = static_cast<uint64_t>(block[1]) << 32 | block[0];
  const uint64_t b = static_cast<uint64_t>(block[3]) << 32 | block[2];
  // (0, 1], so that the logarithm is finite.
  const double u = (static_cast<double>(a >> 11) + 1.0) * 0x1.0p-53;
  const double v = static_cast<double>(b >> 11) * 0x1.0p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(kTwoPi * v);
}

}  // namespace cubit
