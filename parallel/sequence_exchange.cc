// SPDX-License-Identifier: Apache-2.0

#include "parallel/sequence_exchange.h"

#include <numeric>
#include <utility>

#include "ops/heads.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Columns [begin, begin + count) as one wide head.
template <typename Columns>
auto ColumnsOf(const Columns& tensor, int64_t begin, int64_t count) {
  return HeadsOf(tensor, begin, 1, count);
}

}  // namespace

SequenceExchange::SequenceExchange(const SequenceLayout& layout,
                                   int64_t num_heads,
                                   std::vector<int64_t> widths)
    : layout_(layout), num_heads_(num_heads), widths_(std::move(widths)) {
  CUBIT_CHECK_EQ(num_heads % layout.cp_size(), 0);
}

int64_t SequenceExchange::num_columns() const {
  return num_local_heads() *
         std::accumulate(widths_.begin(), widths_.end(), int64_t{0});
}

Tensor SequenceExchange::Part(const Tensor& buffer, int64_t batch,
                              int rank) const {
  const int64_t rows = layout_.local_seq_len();
  const int64_t elements = batch * rows * num_columns();
  return buffer.Slice(rank * elements, elements)
      .Reshape({batch, rows, num_columns()});
}

void SequenceExchange::PackHeads(ConstTensor local, const Tensor& buffer,
                                 Stream& stream) const {
  for (int rank = 0; rank < layout_.cp_size(); ++rank) {
    const Tensor part = Part(buffer, local.dim(0), rank);
    int64_t begin = 0;  // of the projection's columns in the part
    for (const int64_t width : widths_) {
      const int64_t count = num_local_heads() * width;
      CopyHeads(
          ColumnsOf(local, begin * layout_.cp_size() + rank * count, count),
          ColumnsOf(part, begin, count), stream);
      begin += count;
    }
  }
}

void SequenceExchange::UnpackHeads(const Tensor& buffer, Tensor local,
                                   Stream& stream) const {
  for (int rank = 0; rank < layout_.cp_size(); ++rank) {
    const Tensor part = Part(buffer, local.dim(0), rank);
    int64_t begin = 0;
    for (const int64_t width : widths_) {
      const int64_t count = num_local_heads() * width;
      CopyHeads(
          ColumnsOf(part, begin, count),
          ColumnsOf(local, begin * layout_.cp_size() + rank * count, count),
          stream);
      begin += count;
    }
  }
}

void SequenceExchange::PackRows(ConstTensor whole, const Tensor& buffer,
                                Stream& stream) const {
  const ConstHeadTensor from = ColumnsOf(whole, 0, num_columns());
  for (int rank = 0; rank < layout_.cp_size(); ++rank) {
    const HeadTensor to =
        ColumnsOf(Part(buffer, whole.dim(0), rank), 0, num_columns());
    for (const int chunk : layout_.ChunksOf(rank)) {
      CopyHeads(
          SliceSequence(from, layout_.GlobalBegin(chunk), layout_.chunk_len()),
          SliceSequence(to, layout_.LocalBegin(chunk), layout_.chunk_len()),
          stream);
    }
  }
}

void SequenceExchange::UnpackRows(const Tensor& buffer, Tensor whole,
                                  Stream& stream) const {
  const HeadTensor to = ColumnsOf(whole, 0, num_columns());
  for (int rank = 0; rank < layout_.cp_size(); ++rank) {
    const HeadTensor from =
        ColumnsOf(Part(buffer, whole.dim(0), rank), 0, num_columns());
    for (const int chunk : layout_.ChunksOf(rank)) {
      CopyHeads(
          SliceSequence(from, layout_.LocalBegin(chunk), layout_.chunk_len()),
          SliceSequence(to, layout_.GlobalBegin(chunk), layout_.chunk_len()),
          stream);
    }
  }
}

absl::Status SequenceExchange::AllToAll(const SequenceExchangeBuffers& buffers,
                                        int64_t batch, Communicator& cp,
                                        Stream& stream) const {
  CUBIT_CHECK_EQ(cp.size(), layout_.cp_size());
  const int64_t elements = BufferElements(batch);
  return cp.AllToAll(buffers.send.Slice(0, elements),
                     buffers.receive.Slice(0, elements), stream);
}

absl::Status SequenceExchange::ToHeads(ConstTensor local,
                                       const SequenceExchangeBuffers& buffers,
                                       Communicator& cp, Tensor whole,
                                       Stream& stream) const {
  PackHeads(local, buffers.send, stream);
  CUBIT_RETURN_IF_ERROR(AllToAll(buffers, local.dim(0), cp, stream));
  UnpackRows(buffers.receive, whole, stream);
  return absl::OkStatus();
}

absl::Status SequenceExchange::ToSequence(
    ConstTensor whole, const SequenceExchangeBuffers& buffers, Communicator& cp,
    Tensor local, Stream& stream) const {
  PackRows(whole, buffers.send, stream);
  CUBIT_RETURN_IF_ERROR(AllToAll(buffers, whole.dim(0), cp, stream));
  UnpackHeads(buffers.receive, local, stream);
  return absl::OkStatus();
}

}  // namespace cubit
