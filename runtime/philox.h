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
  // out[i] = float(mean + stddev * Normal(first + i)), the same bits, in a
  // quarter of the time.
  void FillNormal(uint64_t first, int64_t count, double mean, double stddev,
                  float* out) const;

  // Constants of the paper, section 4.3 and table 2.
  static constexpr uint64_t kMultiplier0 = 0xD2511F53;
  static constexpr uint64_t kMultiplier1 = 0xCD9E8D57;
  static constexpr uint32_t kWeyl0 = 0x9E3779B9;
  static constexpr uint32_t kWeyl1 = 0xBB67AE85;
  static constexpr int kRounds = 10;

 private:
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 2> stream_;  // hash of the name: upper counter words
};

}  // namespace cubit

#endif  // CUBIT_RUNTIME_PHILOX_H_
