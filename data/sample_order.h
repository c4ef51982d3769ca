// SPDX-License-Identifier: Apache-2.0
//
// Which sample comes when: a pure function, the same for every layout, so that
// resuming needs one integer.

#ifndef CUBIT_DATA_SAMPLE_ORDER_H_
#define CUBIT_DATA_SAMPLE_ORDER_H_

#include <cstdint>

namespace cubit {

// A permutation of [0, num_samples) for every (seed, epoch), computed for one
// index in O(1) without a table: a Feistel network on the smallest even number
// of bits that holds num_samples, walked until it lands inside (Black and
// Rogaway, "Ciphers with arbitrary finite domains", 2002).
class SampleOrder {
 public:
  // num_samples >= 1.
  SampleOrder(uint64_t seed, int64_t num_samples);

  // Sample of position `position` >= 0 in the endless sequence of epochs.
  int64_t SampleAt(int64_t position) const;
  int64_t EpochOf(int64_t position) const { return position / num_samples_; }

 private:
  uint64_t seed_;
  int64_t num_samples_;
  int half_bits_;
};

}  // namespace cubit

#endif  // CUBIT_DATA_SAMPLE_ORDER_H_
