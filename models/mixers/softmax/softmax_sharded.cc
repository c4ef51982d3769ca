// SPDX-License-Identifier: Apache-2.0
//
// Softmax attention on sequence shards. Keys and values of all chunks are
// gathered, group by group ahead of the computation; a rank attends from its
// own chunks of rows, and sums of the keys' gradients go back to their owners.

#include <memory>
#include <vector>

#include "models/mixers/sequence_groups.h"
#include "models/mixers/sharded_solve.h"
#include "models/mixers/softmax/softmax_mixer.h"
#include "ops/chunked_attention.h"
#include "ops/convert_heads.h"
#include "runtime/check.h"
#include "runtime/profile_range.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kQuery = 0;
constexpr int64_t kKey = 1;
constexpr int64_t kValue = 2;

// Where the time goes, waits for keys included.
constexpr char kAttention[] = "attention";

using Tickets = std::vector<CommunicationLane::Ticket>;

Tickets PostGathers(const SoftmaxShardedScratch& work, CommunicationLane& lane,
                    Stream& stream) {
  Tickets tickets;
  for (int group = 0; group < work.groups.count(); ++group) {
    tickets.push_back(lane.Post(stream, [&work, group](
                                            Communicator& communicator,
                                            Stream& s) {
      return work.groups.GatherAll({work.k, work.v}, group, communicator, s);
    }));
  }
  return tickets;
}

CommunicationLane::Ticket PostReduce(const SoftmaxShardedScratch& work,
                                     int group, CommunicationLane& lane,
                                     Stream& stream) {
  return lane.Post(stream, [&work, group](Communicator& communicator,
                                          Stream& s) {
    CUBIT_RETURN_IF_ERROR(work.groups.Reduce(work.d_k, group, communicator, s));
    return work.groups.Reduce(work.d_v, group, communicator, s);
  });
}

// `weighted`: a local view, fp32.
RowSums SumsOf(const SoftmaxShardedScratch& work, HeadTensor weighted,
               SequenceBlock block) {
  RowSums sums;
  sums.row_max = work.groups.Scalars(work.row_max, block);
  sums.row_sum = work.groups.Scalars(work.row_sum, block);
  sums.weighted = work.groups.Part(weighted, block);
  return sums;
}

// What a block of rows gives to its d_q and to the parts of d_k and d_v.
void RowsBackward(const SoftmaxShardedScratch& work, SequenceBlock rows,
                  const AttentionChunkRows& queries, float scale,
                  const MixerContext& context, HeadTensor d_q) {
  const SequenceGroups& groups = work.groups;
  for (int c = 0; c <= rows.chunk; ++c) {
    const SequenceBlock keys = {rows.group, c};
    AttentionChunkBackward(
        queries, groups.Rows(work.k, keys), groups.Rows(work.v, keys), scale,
        groups.Mask(context.mask.segment_ids, rows.group, rows.chunk, c),
        {d_q, groups.Rows(work.d_k, keys), groups.Rows(work.d_v, keys)},
        *context.stream);
  }
}

}  // namespace

std::unique_ptr<MixerSaved> SoftmaxMixer::AllocateShardedSaved(
    const MixerShape& shape, const SequenceLayout&, Arena& arena) const {
  return AllocateSaved(shape, arena);
}

std::unique_ptr<MixerScratch> SoftmaxMixer::AllocateShardedScratch(
    const MixerShape& shape, const SequenceLayout& layout, Arena& arena) const {
  auto work = std::make_unique<SoftmaxShardedScratch>(
      SequenceGroups(layout, shape.batch, shape.num_heads));
  const SequenceGroups& groups = work->groups;
  for (Tensor* rows : {&work->k, &work->v}) {
    *rows = groups.AllocateRows(BlockSet::kAll, shape.dtype, head_dim_, arena);
  }
  for (Tensor* parts : {&work->d_k, &work->d_v}) {
    *parts =
        groups.AllocateRows(BlockSet::kAll, DType::kFloat32, head_dim_, arena);
  }
  for (Tensor* scalars : {&work->row_max, &work->lse, &work->delta}) {
    *scalars = groups.AllocateScalars(BlockSet::kOwn, DType::kFloat32, arena);
  }
  work->row_sum =
      groups.AllocateScalars(BlockSet::kOwn, DType::kFloat64, arena);
  if (shape.dtype == DType::kFloat32) return work;
  for (Tensor* local : {&work->weighted, &work->d_q}) {
    *local = arena.Allocate(DType::kFloat32, shape.rows());
  }
  return work;
}

void SoftmaxMixer::ForwardSharded(const MixerContext& context,
                                  const SequenceShard& sequence, Tensor columns,
                                  MixerSaved* saved, MixerScratch* scratch,
                                  Tensor out) const {
  CUBIT_CHECK(context.mask.causal);
  auto& kept = *static_cast<SoftmaxSaved*>(saved);
  auto& work = *static_cast<SoftmaxShardedScratch*>(scratch);
  const SequenceGroups& groups = work.groups;
  CommunicationLane& lane = LaneOf(sequence);
  Stream& stream = *context.stream;
  const auto q = Projection<HeadTensor>(columns, kQuery);
  const auto k = Projection<HeadTensor>(columns, kKey);
  const HeadTensor out_heads = HeadsOf(out, 0, q.num_heads, head_dim_);
  const HeadTensor weighted = HeadsInFloat32(out_heads, work.weighted);
  NormForward(context, q, k, &kept);
  RotateShard(context.rotary_table, sequence, q, stream);
  RotateShard(context.rotary_table, sequence, k, stream);
  groups.Pack(k, work.k, sequence.cp_rank, stream);
  groups.Pack(Projection<HeadTensor>(columns, kValue), work.v, sequence.cp_rank,
              stream);
  const ProfileRange range(kAttention, stream);
  const Tickets gathered = PostGathers(work, lane, stream);
  for (const SequenceBlock rows : groups.OwnBlocks(sequence.cp_rank)) {
    const RowSums sums = SumsOf(work, weighted, rows);
    lane.Wait(gathered[static_cast<size_t>(rows.group)], stream);
    BeginRowSums(sums, stream);
    for (int c = 0; c <= rows.chunk; ++c) {
      AttentionChunkForward(
          groups.Part(q, rows), groups.Rows(work.k, {rows.group, c}),
          groups.Rows(work.v, {rows.group, c}), attention_scale_,
          groups.Mask(context.mask.segment_ids, rows.group, rows.chunk, c),
          sums, stream);
    }
    FinishRowSums(sums, groups.Part(out_heads, rows),
                  groups.Scalars(work.lse, rows), stream);
  }
  groups.UnpackScalars(work.lse, kept.lse, sequence.cp_rank, stream);
  sequence.parallel->Note(lane.status());
}

// The interface has nine parameters.
// NOLINTNEXTLINE(readability-function-size)
void SoftmaxMixer::BackwardSharded(const MixerContext& context,
                                   const SequenceShard& sequence,
                                   ConstTensor columns, const MixerSaved& saved,
                                   ConstTensor out, ConstTensor d_out,
                                   MixerScratch* scratch, Tensor d_columns,
                                   const std::vector<Tensor>& d_scalars) const {
  const auto& kept = static_cast<const SoftmaxSaved&>(saved);
  auto& work = *static_cast<SoftmaxShardedScratch*>(scratch);
  const SequenceGroups& groups = work.groups;
  CommunicationLane& lane = LaneOf(sequence);
  Stream& stream = *context.stream;
  const int rank = sequence.cp_rank;
  const auto q = Projection<ConstHeadTensor>(columns, kQuery);
  const auto heads_of = [&](const ConstTensor& tensor) {
    return HeadsOf(tensor, 0, q.num_heads, head_dim_);
  };
  const auto d_q = Projection<HeadTensor>(d_columns, kQuery);
  const auto d_k = Projection<HeadTensor>(d_columns, kKey);
  const HeadTensor d_q_sums = HeadsInFloat32(d_q, work.d_q);
  groups.Pack(Projection<ConstHeadTensor>(columns, kKey), work.k, rank, stream);
  groups.Pack(Projection<ConstHeadTensor>(columns, kValue), work.v, rank,
              stream);
  groups.PackScalars(kept.lse, work.lse, rank, stream);
  const Tickets gathered = PostGathers(work, lane, stream);
  for (const Tensor& sums : {d_columns, work.d_k, work.d_v, work.d_q}) {
    if (sums.empty()) continue;
    SetZero(sums.raw(), sums.size_bytes(), stream);
  }
  {
    const ProfileRange range(kAttention, stream);
    CommunicationLane::Ticket reduced = gathered.back();
    const std::vector<SequenceBlock> own = groups.OwnBlocks(rank);
    for (size_t i = 0; i < own.size(); ++i) {
      const SequenceBlock rows = own[i];
      lane.Wait(gathered[static_cast<size_t>(rows.group)], stream);
      AttentionChunkRows queries = {
          groups.Part(q, rows), groups.Part(heads_of(d_out), rows),
          groups.Scalars(work.lse, rows), groups.Scalars(work.delta, rows),
          groups.Part(heads_of(out), rows)};
      AttentionChunkDelta(queries.out, queries.d_out,
                          groups.Scalars(work.delta, rows), stream);
      RowsBackward(work, rows, queries, attention_scale_, context,
                   groups.Part(d_q_sums, rows));
      if (i + 1 == own.size() || own[i + 1].group != rows.group) {
        reduced = PostReduce(work, rows.group, lane, stream);
      }
    }
    lane.Wait(reduced, stream);
  }
  if (!work.d_q.empty()) ConvertHeads(d_q_sums, d_q, stream);
  groups.Unpack(work.d_k, d_k, rank, stream);
  groups.Unpack(work.d_v, Projection<HeadTensor>(d_columns, kValue), rank,
                stream);
  RotateShardBackward(context.rotary_table, sequence, d_q, stream);
  RotateShardBackward(context.rotary_table, sequence, d_k, stream);
  NormBackward(context, kept, d_q, d_k, d_scalars);
  sequence.parallel->Note(lane.status());
}

}  // namespace cubit
