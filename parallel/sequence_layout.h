// SPDX-License-Identifier: Apache-2.0
//
// How a sequence lies on the ranks of the cp axis: cut into 2 * cp_size chunks
// of equal length, of which rank p owns chunks p and 2 * cp_size - 1 - p
// (zigzag). Under a causal mask every rank then has the same work. Arithmetic
// alone.

#ifndef CUBIT_PARALLEL_SEQUENCE_LAYOUT_H_
#define CUBIT_PARALLEL_SEQUENCE_LAYOUT_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "runtime/check.h"

namespace cubit {

class SequenceLayout {
 public:
  // CHECK: seq_len is a multiple of 2 * cp_size, or cp_size is 1.
  SequenceLayout(int64_t seq_len, int cp_size)
      : seq_len_(seq_len), cp_size_(cp_size) {
    CUBIT_CHECK(cp_size == 1 || seq_len % (2 * cp_size) == 0)
        << seq_len << " tokens over " << cp_size << " ranks";
  }

  int cp_size() const { return cp_size_; }
  int64_t seq_len() const { return seq_len_; }                   // T
  int64_t local_seq_len() const { return seq_len_ / cp_size_; }  // Tl
  // One chunk if there is one rank.
  int num_chunks() const { return cp_size_ == 1 ? 1 : 2 * cp_size_; }
  int64_t chunk_len() const { return seq_len_ / num_chunks(); }

  // Ascending; local rows hold the chunks in this order.
  std::vector<int> ChunksOf(int cp_rank) const {
    if (cp_size_ == 1) return {0};
    return {cp_rank, num_chunks() - 1 - cp_rank};
  }
  int OwnerOf(int chunk) const {
    return chunk < cp_size_ ? chunk : num_chunks() - 1 - chunk;
  }
  // Where the chunk begins in the sequence, and in its owner's local rows.
  int64_t GlobalBegin(int chunk) const { return chunk * chunk_len(); }
  int64_t LocalBegin(int chunk) const {
    return chunk < cp_size_ ? 0 : chunk_len();
  }

  // ids [B, T] of whole sequences, chunk by chunk: [num_chunks, B, Tc].
  void OrderByChunks(int64_t batch, const int32_t* ids,
                     int32_t* by_chunks) const {
    for (int chunk = 0; chunk < num_chunks(); ++chunk) {
      for (int64_t b = 0; b < batch; ++b) {
        by_chunks = std::copy_n(ids + b * seq_len_ + GlobalBegin(chunk),
                                chunk_len(), by_chunks);
      }
    }
  }

 private:
  int64_t seq_len_;
  int cp_size_;
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_SEQUENCE_LAYOUT_H_
