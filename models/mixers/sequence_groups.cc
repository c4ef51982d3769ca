// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/sequence_groups.h"

#include <type_traits>
#include <vector>

#include "ops/convert_heads.h"
#include "ops/heads.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

struct Range {
  int64_t begin = 0;
  int64_t count = 0;
};

template <typename View>
View PartOf(View view, Range sequences, Range heads, Range rows) {
  view = SliceSequence(view, rows.begin, rows.count);
  CUBIT_CHECK(sequences.begin + sequences.count <= view.batch &&
              heads.begin + heads.count <= view.num_heads);
  const int64_t offset =
      (sequences.begin * view.batch_stride + heads.begin * view.head_stride) *
      SizeOf(view.dtype);
  using Byte = std::conditional_t<
      std::is_const_v<std::remove_pointer_t<decltype(view.data)>>, const char,
      char>;
  view.data = static_cast<Byte*>(view.data) + offset;
  view.batch = sequences.count;
  view.num_heads = heads.count;
  return view;
}

// From a chunk of the first of `groups` groups, which lie `stride` apart, the
// chunk of all of them. Of rows [S, Tc, H, K], heads side by side:
// [G, Tc, S, H * K].
template <typename View>
View RowsOfAllGroups(View first, int64_t groups, int64_t stride) {
  View all = first;
  all.head_dim = first.num_heads * first.head_dim;
  all.num_heads = first.batch;
  all.head_stride = first.batch_stride;
  all.batch = groups;
  all.batch_stride = stride;
  return all;
}

// Of scalars, [S, Tc, H, 1] in memory [S, H, .]: [G, S * H, 1, Tc].
template <typename View>
View ScalarsOfAllGroups(View first, int64_t groups, int64_t stride) {
  CUBIT_CHECK(first.seq_stride == 1 &&
              first.batch_stride == first.num_heads * first.head_stride);
  View all = first;
  all.head_dim = first.seq_len;
  all.seq_len = first.batch * first.num_heads;
  all.seq_stride = first.head_stride;
  all.num_heads = 1;
  all.head_stride = all.head_dim;
  all.batch = groups;
  all.batch_stride = stride;
  return all;
}

}  // namespace

void CopyOrConvertHeads(ConstHeadTensor x, HeadTensor y, Stream& stream) {
  if (x.dtype == y.dtype) {
    CopyHeads(x, y, stream);
  } else {
    ConvertHeads(x, y, stream);
  }
}

SequenceGroups::SequenceGroups(const SequenceLayout& layout, int64_t batch,
                               int64_t num_heads)
    : layout_(layout), batch_(batch), num_heads_(num_heads) {
  int64_t fewest = batch * num_heads;
  for (int64_t heads = num_heads; heads >= 1; --heads) {
    for (int64_t sequences = batch; sequences >= 1; --sequences) {
      if (num_heads % heads != 0 || batch % sequences != 0) continue;
      const int64_t groups = (num_heads / heads) * (batch / sequences);
      if (groups < kEnough || groups >= fewest) continue;
      fewest = groups;
      heads_ = heads;
      sequences_ = sequences;
    }
  }
}

int64_t SequenceGroups::BlocksOf(BlockSet set) const {
  return set == BlockSet::kAll ? layout_.num_chunks() : chunks_per_rank();
}

Tensor SequenceGroups::AllocateRows(BlockSet set, DType dtype, int64_t width,
                                    Arena& arena) const {
  return arena.Allocate(
      dtype, {count(), BlocksOf(set), sequences_ * layout_.chunk_len(),
              heads_ * width});
}

Tensor SequenceGroups::AllocateScalars(BlockSet set, DType dtype,
                                       Arena& arena) const {
  return arena.Allocate(dtype, {count(), BlocksOf(set), sequences_ * heads_,
                                layout_.chunk_len()});
}

Tensor SequenceGroups::GroupOf(const Tensor& buffer, int group) const {
  return buffer.Slice(group, 1).Reshape(
      {buffer.dim(1), buffer.dim(2), buffer.dim(3)});
}

Tensor SequenceGroups::Slot(const Tensor& buffer, SequenceBlock block) const {
  int64_t slot = layout_.LocalBegin(block.chunk) / layout_.chunk_len();
  if (buffer.dim(1) == layout_.num_chunks()) {
    slot += layout_.OwnerOf(block.chunk) * chunks_per_rank();
  }
  return GroupOf(buffer, block.group).Slice(slot, 1);
}

HeadTensor SequenceGroups::Rows(const Tensor& buffer,
                                SequenceBlock block) const {
  const Tensor rows =
      Slot(buffer, block)
          .Reshape({sequences_, layout_.chunk_len(), buffer.dim(3)});
  return HeadsOf(rows, 0, heads_, buffer.dim(3) / heads_);
}

Tensor SequenceGroups::Scalars(const Tensor& buffer,
                               SequenceBlock block) const {
  return Slot(buffer, block).Reshape({sequences_, heads_, layout_.chunk_len()});
}

HeadTensor SequenceGroups::Part(HeadTensor local, SequenceBlock block) const {
  return PartOf(local, {first_sequence(block.group), sequences_},
                {first_head(block.group), heads_},
                {layout_.LocalBegin(block.chunk), layout_.chunk_len()});
}

ConstHeadTensor SequenceGroups::Part(ConstHeadTensor local,
                                     SequenceBlock block) const {
  return PartOf(local, {first_sequence(block.group), sequences_},
                {first_head(block.group), heads_},
                {layout_.LocalBegin(block.chunk), layout_.chunk_len()});
}

Tensor SequenceGroups::Heads(const Tensor& per_head, int group) const {
  return per_head.Slice(first_head(group), heads_);
}

ConstTensor SequenceGroups::Heads(const ConstTensor& per_head,
                                  int group) const {
  return per_head.Slice(first_head(group), heads_);
}

ConstTensor SequenceGroups::Segments(const ConstTensor& segment_ids,
                                     SequenceBlock block) const {
  if (segment_ids.empty()) return segment_ids;
  CUBIT_CHECK_SHAPE(segment_ids,
                    {layout_.num_chunks(), batch_, layout_.chunk_len()});
  return segment_ids.Slice(block.chunk, 1)
      .Reshape({batch_, layout_.chunk_len()})
      .Slice(first_sequence(block.group), sequences_);
}

ChunkMask SequenceGroups::Mask(const ConstTensor& segment_ids, int group,
                               int rows, int columns) const {
  ChunkMask mask;
  mask.diagonal = rows == columns;
  mask.query_segments = Segments(segment_ids, {group, rows});
  mask.key_segments = Segments(segment_ids, {group, columns});
  return mask;
}

std::vector<SequenceBlock> SequenceGroups::OwnBlocks(int cp_rank) const {
  std::vector<SequenceBlock> blocks;
  for (int g = 0; g < count(); ++g) {
    for (const int chunk : layout_.ChunksOf(cp_rank)) {
      blocks.push_back({g, chunk});
    }
  }
  return blocks;
}

template <typename View, typename Copy>
void SequenceGroups::ForEachPiece(View local, const Tensor& buffer, int cp_rank,
                                  const Copy& copy) const {
  if (blocks_of_heads() > 1 || local.head_stride != local.head_dim) {
    for (const SequenceBlock block : OwnBlocks(cp_rank)) {
      copy(Part(local, block), Rows(buffer, block));
    }
    return;
  }
  const int64_t of_group = buffer.num_elements() / count();
  for (const int chunk : layout_.ChunksOf(cp_rank)) {
    const SequenceBlock first = {0, chunk};
    copy(RowsOfAllGroups(Part(local, first), count(),
                         sequences_ * local.batch_stride),
         RowsOfAllGroups(Rows(buffer, first), count(), of_group));
  }
}

template <typename View, typename Copy>
void SequenceGroups::ForEachScalarsPiece(View local, const Tensor& buffer,
                                         int cp_rank, const Copy& copy) const {
  if (blocks_of_heads() > 1) {
    for (const SequenceBlock block : OwnBlocks(cp_rank)) {
      copy(Part(local, block), ScalarsOf(Scalars(buffer, block)));
    }
    return;
  }
  const int64_t of_group = buffer.num_elements() / count();
  for (const int chunk : layout_.ChunksOf(cp_rank)) {
    const SequenceBlock first = {0, chunk};
    copy(ScalarsOfAllGroups(Part(local, first), count(),
                            sequences_ * local.batch_stride),
         ScalarsOfAllGroups(ScalarsOf(Scalars(buffer, first)), count(),
                            of_group));
  }
}

void SequenceGroups::Pack(ConstHeadTensor local, const Tensor& buffer,
                          int cp_rank, Stream& stream) const {
  ForEachPiece(local, buffer, cp_rank, [&](ConstHeadTensor x, HeadTensor y) {
    CopyOrConvertHeads(x, y, stream);
  });
}

void SequenceGroups::Unpack(const Tensor& buffer, HeadTensor local, int cp_rank,
                            Stream& stream) const {
  ForEachPiece(local, buffer, cp_rank, [&](HeadTensor y, HeadTensor x) {
    CopyOrConvertHeads(x, y, stream);
  });
}

void SequenceGroups::PackScalars(const ConstTensor& local, const Tensor& buffer,
                                 int cp_rank, Stream& stream) const {
  ForEachScalarsPiece(
      ScalarsOf(local), buffer, cp_rank,
      [&](ConstHeadTensor x, HeadTensor y) { CopyHeads(x, y, stream); });
}

void SequenceGroups::UnpackScalars(const Tensor& buffer, const Tensor& local,
                                   int cp_rank, Stream& stream) const {
  ForEachScalarsPiece(
      ScalarsOf(local), buffer, cp_rank,
      [&](HeadTensor y, HeadTensor x) { CopyHeads(x, y, stream); });
}

absl::Status SequenceGroups::Gather(const Tensor& buffer, int group,
                                    Communicator& communicator,
                                    Stream& stream) const {
  const Tensor all = GroupOf(buffer, group);
  const Tensor own =
      all.Slice(communicator.rank() * chunks_per_rank(), chunks_per_rank());
  return communicator.AllGather(own, all, stream);
}

absl::Status SequenceGroups::GatherAll(const std::vector<Tensor>& buffers,
                                       int group, Communicator& communicator,
                                       Stream& stream) const {
  for (const Tensor& buffer : buffers) {
    CUBIT_RETURN_IF_ERROR(Gather(buffer, group, communicator, stream));
  }
  return absl::OkStatus();
}

absl::Status SequenceGroups::Reduce(const Tensor& buffer, int group,
                                    Communicator& communicator,
                                    Stream& stream) const {
  const Tensor all = GroupOf(buffer, group);
  const Tensor own =
      all.Slice(communicator.rank() * chunks_per_rank(), chunks_per_rank());
  return communicator.ReduceScatter(all, own, ReduceOp::kSum, stream);
}

absl::Status SequenceGroups::Broadcast(const Tensor& buffer,
                                       SequenceBlock block,
                                       Communicator& communicator,
                                       Stream& stream) const {
  return communicator.Broadcast(Slot(buffer, block),
                                layout_.OwnerOf(block.chunk), stream);
}

}  // namespace cubit
