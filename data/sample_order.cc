// SPDX-License-Identifier: Apache-2.0

#include "data/sample_order.h"

#include "runtime/check.h"
#include "runtime/philox.h"

namespace cubit {
namespace {

// Four rounds make a Feistel network a pseudorandom permutation; twice as many,
// because halves of one or two bits mix slowly.
constexpr int kRounds = 8;

// Stafford's variant 13 of the 64-bit finaliser ("Better bit mixing", 2011).
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A permutation of [0, 2^(2 * half_bits)).
uint64_t Feistel(uint64_t key, int half_bits, uint64_t x) {
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t left = x >> half_bits;
  uint64_t right = x & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    // The round in the upper half: `right` has at most 32 bits.
    const uint64_t mixed = Mix(key ^ Mix(right + (round << 32) + 1));
    const uint64_t next = left ^ (mixed & mask);
    left = right;
    right = next;
  }
  return left << half_bits | right;
}

}  // namespace

SampleOrder::SampleOrder(uint64_t seed, int64_t num_samples)
    : seed_(seed), num_samples_(num_samples), half_bits_(1) {
  CUBIT_CHECK_GE(num_samples, 1);
  while (half_bits_ < 32 &&
         uint64_t{1} << (2 * half_bits_) < static_cast<uint64_t>(num_samples)) {
    ++half_bits_;
  }
}

int64_t SampleOrder::SampleAt(int64_t position) const {
  CUBIT_CHECK_GE(position, 0);
  const uint64_t key = Philox(seed_, "sample_order")
                           .Bits(static_cast<uint64_t>(EpochOf(position)));
  uint64_t sample = static_cast<uint64_t>(position % num_samples_);
  // A walk along the cycle of a sample always comes back below num_samples_;
  // the domain is less than four times as large, so it takes few steps.
  do {
    sample = Feistel(key, half_bits_, sample);
  } while (sample >= static_cast<uint64_t>(num_samples_));
  return static_cast<int64_t>(sample);
}

}  // namespace cubit
