// SPDX-License-Identifier: Apache-2.0
//
// Between two ways to spread [B, T, columns of H heads] over the cp ranks: a
// part of the sequence with all heads (sequence_layout.h), or the whole
// sequence with a part of the heads. One all-to-all each way (DeepSpeed
// Ulysses, Jacobs et al., arXiv:2309.14509), by which anything that works head
// by head works on sequences that are spread.

#ifndef CUBIT_PARALLEL_SEQUENCE_EXCHANGE_H_
#define CUBIT_PARALLEL_SEQUENCE_EXCHANGE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "parallel/sequence_layout.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Work space: what a rank sends and what it receives, in parts for each rank.
struct SequenceExchangeBuffers {
  Tensor send;     // [>= BufferElements()], of the exchanged tensors' dtype
  Tensor receive;  // the same
};

class SequenceExchange {
 public:
  // Columns are projections one behind the other, projection i with widths[i]
  // columns for each of `num_heads` heads. Rank q gets heads [q, q + 1) *
  // num_heads / cp_size. CHECK: cp_size divides num_heads.
  SequenceExchange(const SequenceLayout& layout, int64_t num_heads,
                   std::vector<int64_t> widths);

  int64_t num_local_heads() const { return num_heads_ / layout_.cp_size(); }
  // Columns that the heads of one rank have, C.
  int64_t num_columns() const;
  int64_t BufferElements(int64_t batch) const {
    return batch * layout_.seq_len() * pitch();
  }

  // whole [B, T, >= C] of this rank's heads, in the order of the sequence, from
  // every rank's `local` [B, Tl, >= cp_size * C]. Columns beyond those are
  // neither read nor written. A collective of `cp`, whose size is the layout's
  // (CHECK); nothing overlaps.
  absl::Status ToHeads(ConstTensor local,
                       const SequenceExchangeBuffers& buffers, Communicator& cp,
                       Tensor whole, Stream& stream) const;
  // The way back, likewise.
  absl::Status ToSequence(ConstTensor whole,
                          const SequenceExchangeBuffers& buffers,
                          Communicator& cp, Tensor local, Stream& stream) const;

 private:
  // Columns of the buffers: C up to a multiple of kAligned, so that rows can be
  // read and written in vectors.
  int64_t pitch() const;
  // use(of_local, of_part): the pieces of `local` and of the parts [B, Tl,
  // pitch()] of `buffer` that belong together; parts hold the heads of one rank
  // each.
  template <typename TensorType, typename Use>
  void ForHeads(TensorType local, const Tensor& buffer, const Use& use) const;
  void PackHeads(ConstTensor local, const Tensor& buffer, Stream& stream) const;
  void UnpackHeads(const Tensor& buffer, Tensor local, Stream& stream) const;
  // Likewise of `whole` and the parts, which hold the rows of one rank each.
  template <typename TensorType, typename Use>
  void ForRows(TensorType whole, const Tensor& buffer, const Use& use) const;
  void PackRows(ConstTensor whole, const Tensor& buffer, Stream& stream) const;
  void UnpackRows(const Tensor& buffer, Tensor whole, Stream& stream) const;
  struct Span {
    int64_t begin = 0;
    int64_t count = 0;
  };
  // The C columns in two spans, the first as wide as vectors can be copied.
  std::vector<Span> RowSpans() const;
  // Part `rank` of `buffer`.
  Tensor Part(const Tensor& buffer, int64_t batch, int rank) const;
  absl::Status AllToAll(const SequenceExchangeBuffers& buffers, int64_t batch,
                        Communicator& cp, Stream& stream) const;

  SequenceLayout layout_;
  int64_t num_heads_;
  std::vector<int64_t> widths_;
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_SEQUENCE_EXCHANGE_H_
