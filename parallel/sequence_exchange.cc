// SPDX-License-Identifier: Apache-2.0

#include "parallel/sequence_exchange.h"

#include <numeric>
#include <utility>

#include "ops/heads.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kAligned = 8;  // elements: 16 bytes of the smallest type

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

int64_t SequenceExchange::pitch() const {
  return (num_columns() + kAligned - 1) / kAligned * kAligned;
}

Tensor SequenceExchange::Part(const Tensor& buffer, int64_t batch,
                              int rank) const {
  const int64_t rows = layout_.local_seq_len();
  const int64_t elements = batch * rows * pitch();
  return buffer.Slice(rank * elements, elements)
      .Reshape({batch, rows, pitch()});
}

template <typename TensorType, typename Use>
void SequenceExchange::ForHeads(TensorType local, const Tensor& buffer,
                                const Use& use) const {
  for (int rank = 0; rank < layout_.cp_size(); ++rank) {
    const Tensor part = Part(buffer, local.dim(0), rank);
    int64_t begin = 0;  // of the projection's columns in the part
    for (const int64_t width : widths_) {
      const int64_t count = num_local_heads() * width;
      use(ColumnsOf(local, begin * layout_.cp_size() + rank * count, count),
          ColumnsOf(part, begin, count));
      begin += count;
    }
  }
}

void SequenceExchange::PackHeads(ConstTensor local, const Tensor& buffer,
                                 Stream& stream) const {
  ForHeads(local, buffer, [&](ConstHeadTensor of_local, HeadTensor of_part) {
    CopyHeads(of_local, of_part, stream);
  });
}

void SequenceExchange::UnpackHeads(const Tensor& buffer, Tensor local,
                                   Stream& stream) const {
  ForHeads(local, buffer, [&](HeadTensor of_local, HeadTensor of_part) {
    CopyHeads(of_part, of_local, stream);
  });
}

std::vector<SequenceExchange::Span> SequenceExchange::RowSpans() const {
  // One column a head (a projection to a number) leaves a few at the end.
  const int64_t aligned = num_columns() / kAligned * kAligned;
  std::vector<Span> spans;
  if (aligned > 0) spans.push_back({0, aligned});
  if (aligned < num_columns()) {
    spans.push_back({aligned, num_columns() - aligned});
  }
  return spans;
}

template <typename TensorType, typename Use>
void SequenceExchange::ForRows(TensorType whole, const Tensor& buffer,
                               const Use& use) const {
  for (int rank = 0; rank < layout_.cp_size(); ++rank) {
    const Tensor part = Part(buffer, whole.dim(0), rank);
    for (const Span& span : RowSpans()) {
      const auto of_whole = ColumnsOf(whole, span.begin, span.count);
      const HeadTensor of_part = ColumnsOf(part, span.begin, span.count);
      for (const int chunk : layout_.ChunksOf(rank)) {
        use(SliceSequence(of_whole, layout_.GlobalBegin(chunk),
                          layout_.chunk_len()),
            SliceSequence(of_part, layout_.LocalBegin(chunk),
                          layout_.chunk_len()));
      }
    }
  }
}

void SequenceExchange::PackRows(ConstTensor whole, const Tensor& buffer,
                                Stream& stream) const {
  ForRows(whole, buffer, [&](ConstHeadTensor of_whole, HeadTensor of_part) {
    CopyHeads(of_whole, of_part, stream);
  });
}

void SequenceExchange::UnpackRows(const Tensor& buffer, Tensor whole,
                                  Stream& stream) const {
  ForRows(whole, buffer, [&](HeadTensor of_whole, HeadTensor of_part) {
    CopyHeads(of_part, of_whole, stream);
  });
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
