// SPDX-License-Identifier: Apache-2.0
//
// How a mixer on sequence shards cuts its tensors. A group is some sequences
// and a block of their heads; groups know nothing of each other, so that one
// may compute while another waits for a message. A block is one chunk of one
// group; buffers hold blocks one after the other, so that a block, or a group's
// blocks of all chunks, is one message, and an op on a block is one call.

#ifndef CUBIT_MODELS_MIXERS_SEQUENCE_GROUPS_H_
#define CUBIT_MODELS_MIXERS_SEQUENCE_GROUPS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "ops/chunked_attention.h"
#include "parallel/sequence_layout.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"

namespace cubit {

// A place in a buffer.
struct SequenceBlock {
  int group = 0;
  int chunk = 0;
};

// Which chunks a buffer has blocks of.
enum class BlockSet {
  kAll,  // of all ranks, ordered by owner, then by position
  kOwn   // of one rank
};

// y = x in y's dtype, as CopyHeads or ConvertHeads.
void CopyOrConvertHeads(ConstHeadTensor x, HeadTensor y, Stream& stream);

// G groups of S sequences and Hg heads; chunks of Tc tokens. Groups are counted
// over the blocks of heads of the first S sequences, then of the next. Local
// views are [B, Tl, H, K] with the rank's chunks one after the other
// (sequence_layout.h).
class SequenceGroups {
 public:
  // The fewest groups of equal extents that are at least kEnough, or else one
  // sequence and head a group; of as few, those with most heads. A function of
  // the shape alone.
  SequenceGroups(const SequenceLayout& layout, int64_t batch,
                 int64_t num_heads);

  const SequenceLayout& layout() const { return layout_; }
  int count() const {
    return static_cast<int>(batch_ / sequences_ * blocks_of_heads());
  }
  int64_t sequences() const { return sequences_; }  // S
  int64_t heads() const { return heads_; }          // Hg

  // [G, blocks, S * Tc, Hg * width].
  Tensor AllocateRows(BlockSet set, DType dtype, int64_t width,
                      Arena& arena) const;
  // [G, blocks, S * Hg, Tc].
  Tensor AllocateScalars(BlockSet set, DType dtype, Arena& arena) const;

  // [S, Tc, Hg, width] and [S, Hg, Tc] of such a buffer.
  HeadTensor Rows(const Tensor& buffer, SequenceBlock block) const;
  Tensor Scalars(const Tensor& buffer, SequenceBlock block) const;

  // The same part [S, Tc, Hg, K] of a local view, on the chunk's owner.
  HeadTensor Part(HeadTensor local, SequenceBlock block) const;
  ConstHeadTensor Part(ConstHeadTensor local, SequenceBlock block) const;
  // [Hg] of [H].
  Tensor Heads(const Tensor& per_head, int group) const;
  ConstTensor Heads(const ConstTensor& per_head, int group) const;
  // Documents [S, Tc] of `segment_ids` [chunks, B, Tc]; absent if they are.
  ConstTensor Segments(const ConstTensor& segment_ids,
                       SequenceBlock block) const;
  ChunkMask Mask(const ConstTensor& segment_ids, int group, int rows,
                 int columns) const;

  // Every block that the rank owns, group by group.
  std::vector<SequenceBlock> OwnBlocks(int cp_rank) const;

  // Between a local view [B, Tl, H, K] and the rank's own blocks of a buffer of
  // rows, converted where their dtypes differ; likewise of scalars, with [B, H,
  // Tl], of one dtype. A copy for every chunk if groups have all heads (and
  // those of `local` lie side by side), otherwise for every block.
  void Pack(ConstHeadTensor local, const Tensor& buffer, int cp_rank,
            Stream& stream) const;
  void Unpack(const Tensor& buffer, HeadTensor local, int cp_rank,
              Stream& stream) const;
  void PackScalars(const ConstTensor& local, const Tensor& buffer, int cp_rank,
                   Stream& stream) const;
  void UnpackScalars(const Tensor& buffer, const Tensor& local, int cp_rank,
                     Stream& stream) const;

  // Collectives over a buffer of all blocks. Gather: every rank's own blocks of
  // the group, to all. Reduce: sums over ranks, each block to its owner; others
  // keep no meaning. Broadcast: one block, from its owner.
  absl::Status Gather(const Tensor& buffer, int group,
                      Communicator& communicator, Stream& stream) const;
  absl::Status GatherAll(const std::vector<Tensor>& buffers, int group,
                         Communicator& communicator, Stream& stream) const;
  absl::Status Reduce(const Tensor& buffer, int group,
                      Communicator& communicator, Stream& stream) const;
  absl::Status Broadcast(const Tensor& buffer, SequenceBlock block,
                         Communicator& communicator, Stream& stream) const;

 private:
  // Four groups hide the wavefront's dependencies (the table in
  // docs/parallelism.md); more only make the pieces smaller.
  static constexpr int64_t kEnough = 4;

  int64_t blocks_of_heads() const { return num_heads_ / heads_; }
  int64_t first_sequence(int group) const {
    return group / blocks_of_heads() * sequences_;
  }
  int64_t first_head(int group) const {
    return group % blocks_of_heads() * heads_;
  }
  int chunks_per_rank() const {
    return layout_.num_chunks() / layout_.cp_size();
  }
  int64_t BlocksOf(BlockSet set) const;
  // copy(part of the local view, the same of the buffer), equal in extents.
  template <typename View, typename Copy>
  void ForEachPiece(View local, const Tensor& buffer, int cp_rank,
                    const Copy& copy) const;
  template <typename View, typename Copy>
  void ForEachScalarsPiece(View local, const Tensor& buffer, int cp_rank,
                           const Copy& copy) const;
  // The block as a slice of the buffer's second dim.
  Tensor Slot(const Tensor& buffer, SequenceBlock block) const;
  Tensor GroupOf(const Tensor& buffer, int group) const;

  SequenceLayout layout_;
  int64_t batch_;
  int64_t num_heads_;
  int64_t sequences_ = 1;
  int64_t heads_ = 1;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXERS_SEQUENCE_GROUPS_H_
