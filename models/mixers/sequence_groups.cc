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

// Rows [begin, + count) of heads [first_head, + heads) of sequence `b`.
template <typename View>
View PartOf(View view, int64_t b, int64_t first_head, int64_t heads,
            int64_t begin, int64_t count) {
  view = SliceSequence(view, begin, count);
  CUBIT_CHECK(b < view.batch && first_head + heads <= view.num_heads);
  const int64_t offset =
      (b * view.batch_stride + first_head * view.head_stride) *
      SizeOf(view.dtype);
  using Byte = std::conditional_t<
      std::is_const_v<std::remove_pointer_t<decltype(view.data)>>, const char,
      char>;
  view.data = static_cast<Byte*>(view.data) + offset;
  view.batch = 1;
  view.num_heads = heads;
  return view;
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
    : layout_(layout), batch_(batch), num_heads_(num_heads), heads_(num_heads) {
  while (heads_ > 1 &&
         (num_heads % heads_ != 0 || batch * (num_heads / heads_) < kEnough)) {
    --heads_;
  }
}

int64_t SequenceGroups::BlocksOf(BlockSet set) const {
  return set == BlockSet::kAll ? layout_.num_chunks() : chunks_per_rank();
}

Tensor SequenceGroups::AllocateRows(BlockSet set, DType dtype, int64_t width,
                                    Arena& arena) const {
  return arena.Allocate(
      dtype, {count(), BlocksOf(set), layout_.chunk_len(), heads_ * width});
}

Tensor SequenceGroups::AllocateScalars(BlockSet set, DType dtype,
                                       Arena& arena) const {
  return arena.Allocate(dtype,
                        {count(), BlocksOf(set), heads_, layout_.chunk_len()});
}

Tensor SequenceGroups::GroupOf(const Tensor& buffer, int group) const {
  return buffer.Slice(group, 1).Reshape(
      {buffer.dim(1), buffer.dim(2), buffer.dim(3)});
}

Tensor SequenceGroups::Slot(const Tensor& buffer, Block block) const {
  int64_t slot = layout_.LocalBegin(block.chunk) / layout_.chunk_len();
  if (buffer.dim(1) == layout_.num_chunks()) {
    slot += layout_.OwnerOf(block.chunk) * chunks_per_rank();
  }
  return GroupOf(buffer, block.group).Slice(slot, 1);
}

HeadTensor SequenceGroups::Rows(const Tensor& buffer, Block block) const {
  return HeadsOf(Slot(buffer, block), 0, heads_, buffer.dim(3) / heads_);
}

Tensor SequenceGroups::Scalars(const Tensor& buffer, Block block) const {
  return Slot(buffer, block);
}

HeadTensor SequenceGroups::Part(HeadTensor local, Block block) const {
  return PartOf(local, block.group / blocks_of_heads(),
                block.group % blocks_of_heads() * heads_, heads_,
                layout_.LocalBegin(block.chunk), layout_.chunk_len());
}

ConstHeadTensor SequenceGroups::Part(ConstHeadTensor local, Block block) const {
  return PartOf(local, block.group / blocks_of_heads(),
                block.group % blocks_of_heads() * heads_, heads_,
                layout_.LocalBegin(block.chunk), layout_.chunk_len());
}

Tensor SequenceGroups::Heads(const Tensor& per_head, int group) const {
  return per_head.Slice(group % blocks_of_heads() * heads_, heads_);
}

ConstTensor SequenceGroups::Heads(const ConstTensor& per_head,
                                  int group) const {
  return per_head.Slice(group % blocks_of_heads() * heads_, heads_);
}

ConstTensor SequenceGroups::Segments(const ConstTensor& segment_ids,
                                     Block block) const {
  if (segment_ids.empty()) return segment_ids;
  CUBIT_CHECK_SHAPE(segment_ids, {batch_, layout_.seq_len()});
  const int64_t b = block.group / blocks_of_heads();
  const ConstTensor row = segment_ids.Slice(b, 1).Reshape({layout_.seq_len()});
  return row.Slice(layout_.GlobalBegin(block.chunk), layout_.chunk_len())
      .Reshape({1, layout_.chunk_len()});
}

ChunkMask SequenceGroups::Mask(const ConstTensor& segment_ids, int group,
                               int rows, int columns) const {
  ChunkMask mask;
  mask.diagonal = rows == columns;
  mask.query_segments = Segments(segment_ids, {group, rows});
  mask.key_segments = Segments(segment_ids, {group, columns});
  return mask;
}

std::vector<Block> SequenceGroups::OwnBlocks(int cp_rank) const {
  std::vector<Block> blocks;
  for (int g = 0; g < count(); ++g) {
    for (const int chunk : layout_.ChunksOf(cp_rank)) {
      blocks.push_back({g, chunk});
    }
  }
  return blocks;
}

void SequenceGroups::Pack(ConstHeadTensor local, const Tensor& buffer,
                          int cp_rank, Stream& stream) const {
  for (const Block block : OwnBlocks(cp_rank)) {
    CopyOrConvertHeads(Part(local, block), Rows(buffer, block), stream);
  }
}

void SequenceGroups::Unpack(const Tensor& buffer, HeadTensor local, int cp_rank,
                            Stream& stream) const {
  for (const Block block : OwnBlocks(cp_rank)) {
    CopyOrConvertHeads(Rows(buffer, block), Part(local, block), stream);
  }
}

void SequenceGroups::PackScalars(const ConstTensor& local, const Tensor& buffer,
                                 int cp_rank, Stream& stream) const {
  for (const Block block : OwnBlocks(cp_rank)) {
    CopyHeads(Part(ScalarsOf(local), block), ScalarsOf(Scalars(buffer, block)),
              stream);
  }
}

void SequenceGroups::UnpackScalars(const Tensor& buffer, const Tensor& local,
                                   int cp_rank, Stream& stream) const {
  for (const Block block : OwnBlocks(cp_rank)) {
    CopyHeads(ScalarsOf(Scalars(buffer, block)), Part(ScalarsOf(local), block),
              stream);
  }
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

absl::Status SequenceGroups::Broadcast(const Tensor& buffer, Block block,
                                       Communicator& communicator,
                                       Stream& stream) const {
  return communicator.Broadcast(Slot(buffer, block),
                                layout_.OwnerOf(block.chunk), stream);
}

}  // namespace cubit
