// SPDX-License-Identifier: Apache-2.0
//
// Counter-based random numbers: number = f(seed, name, index), with no state.
// A parameter is initialised from its name and the global index of each
// element, so every layout starts from the same bits.
// Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011.

#ifndef CUBIT_RUNTIME_PHILOX_H_
#define CUBIT_RUNTIME_PHILOX_H_

#include <array>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace cubit {

class Philox {
 public:
  // The stream of numbers of `name` under `seed`.
  Philox(uint64_t seed, absl::string_view name);

  // Philox4x32-10 itself: the counter enciphered under the key.
  static std::array<uint32_t, 4> Encipher(std::array<uint32_t, 4> counter,
                                          std::array<uint32_t, 2> key);

  // Four independent 32-bit words of block `index`.
  std::array<uint32_t, 4> Block(uint64_t index) const;

  // Uniform 64 bits; number `index` of the stream.
  uint64_t Bits(uint64_t index) const;
  // Uniform in [0, 1), 53 bits.
  double Uniform(uint64_t index) const;
  // Standard normal by Box and Muller, in double.
  double Normal(uint64_t index) const;

 private:
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 2> stream_;  // hash of the name: upper counter words
};

}  // namespace cubit

#endif  // CUBIT_RUNTIME_PHILOX_H_
