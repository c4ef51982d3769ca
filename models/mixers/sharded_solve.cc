// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/sharded_solve.h"

#include <vector>

#include "models/mixers/wavefront_costs.h"
#include "ops/convert_heads.h"
#include "ops/rotary.h"
#include "runtime/check.h"
#include "runtime/profile_range.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Where the time goes; messages: waits, and what lies between two actions.
constexpr char kRotary[] = "rotary";
constexpr char kSolve[] = "solve";
constexpr char kAttention[] = "attention";
constexpr char kMessages[] = "messages";

bool IsAttention(WavefrontActionKind kind) {
  return kind == WavefrontActionKind::kAttend ||
         kind == WavefrontActionKind::kAttendBackward;
}

}  // namespace

ShardedSolveScratch::ShardedSolveScratch(const MixerShape& shape,
                                         DType solve_dtype,
                                         const SequenceLayout& layout,
                                         Arena& arena)
    : groups(layout, shape.batch, shape.num_heads) {
  CUBIT_CHECK_EQ(shape.seq_len, layout.local_seq_len());
  const WavefrontShape wavefront = WavefrontShape::Of(layout, groups.count());
  const WavefrontCosts costs =
      WavefrontCostsOf(groups, shape.head_dim, solve_dtype);
  forward = MakeWavefront(WavefrontPass::kForward, true, wavefront, costs);
  backward = MakeWavefront(WavefrontPass::kBackward, true, wavefront, costs);
  for (Tensor* rows : {&k, &x}) {
    *rows =
        groups.AllocateRows(BlockSet::kAll, solve_dtype, shape.head_dim, arena);
  }
  for (Tensor* rows : {&d_k, &d_x}) {
    *rows = groups.AllocateRows(BlockSet::kAll, DType::kFloat32, shape.head_dim,
                                arena);
  }
  y = solve_dtype == DType::kFloat32
          ? d_x
          : groups.AllocateRows(BlockSet::kAll, solve_dtype, shape.head_dim,
                                arena);
  lse_kernel = groups.AllocateScalars(BlockSet::kAll, DType::kFloat32, arena);
  for (Tensor* scalars : {&lse_attention, &delta_attention, &delta_kernel,
                          &row_max_kernel, &row_max_attention}) {
    *scalars = groups.AllocateScalars(BlockSet::kOwn, DType::kFloat32, arena);
  }
  for (Tensor* sums : {&row_sum_kernel, &row_sum_attention}) {
    *sums = groups.AllocateScalars(BlockSet::kOwn, DType::kFloat64, arena);
  }
  if (shape.dtype == DType::kFloat32) return;
  for (Tensor* local : {&weighted_attention, &d_q}) {
    *local = arena.Allocate(DType::kFloat32, shape.rows());
  }
}

ShardedSolve::ShardedSolve(const MixerContext& context,
                           const SequenceShard& sequence,
                           const ShardedAttention& attention,
                           const SolveSaved& saved,
                           ShardedSolveScratch* scratch)
    : scratch_(*scratch),
      groups_(scratch->groups),
      context_(context),
      sequence_(sequence),
      attention_(attention),
      saved_(saved),
      kernel_x_(Local(saved.kernel_x)),
      weighted_(HeadsInFloat32(attention.out, scratch->weighted_attention)),
      d_q_(HeadsInFloat32(attention.d_q, scratch->d_q)),
      stream_(*context.stream),
      lane_(LaneOf(sequence)) {
  CUBIT_CHECK(context.mask.causal);
}

void ShardedSolve::Compute(const WavefrontAction& action) {
  const SequenceBlock rows = {action.group, action.rows};
  const SequenceBlock columns = {action.group, action.columns};
  const ProfileRange range(IsAttention(action.kind) ? kAttention : kSolve,
                           stream_);
  switch (action.kind) {
    case WavefrontActionKind::kSolve:
      return Solve(rows);
    case WavefrontActionKind::kUpdate:
      return Update(rows, columns);
    case WavefrontActionKind::kAttend:
      return Attend(rows, columns);
    case WavefrontActionKind::kAttendBackward:
      return AttendBackward(rows, columns);
    case WavefrontActionKind::kAdjointSolve:
      return AdjointSolve(columns);
    case WavefrontActionKind::kAdjointUpdate:
      return AdjointUpdate(rows, columns);
    case WavefrontActionKind::kScoreGradients:
      return ScoreGradients(rows, columns);
  }
}

absl::Status ShardedSolve::Communicate(const WavefrontMessage& message,
                                       Communicator& communicator,
                                       Stream& stream) {
  const int group = message.group;
  switch (message.kind) {
    case WavefrontMessageKind::kBroadcast:
      if (forward_ && message.chunk == 0 && group > 0) {
        CUBIT_RETURN_IF_ERROR(
            groups_.GatherAll(gathered_, group, communicator, stream));
      }
      return groups_.Broadcast(forward_ ? scratch_.x : scratch_.y,
                               {group, message.chunk}, communicator, stream);
    case WavefrontMessageKind::kReduceSolutionGradient:
      return groups_.Reduce(scratch_.d_x, group, communicator, stream);
    case WavefrontMessageKind::kReduceKeyGradients:
      break;
  }
  CUBIT_RETURN_IF_ERROR(
      groups_.Reduce(scratch_.d_k, group, communicator, stream));
  return ReduceKeyGradients(group, communicator, stream);
}

void ShardedSolve::PostGather(const std::vector<Tensor>& buffers, int group) {
  gathers_.push_back(
      lane_.Post(stream_, [&groups = groups_, buffers, group](
                              Communicator& communicator, Stream& stream) {
        return groups.GatherAll(buffers, group, communicator, stream);
      }));
}

void ShardedSolve::RunForward(const std::vector<Tensor>& gathered) {
  forward_ = true;
  gathered_ = gathered;
  // Those of the other groups stand before their first X: Communicate.
  PostGather(gathered_, 0);
  const std::vector<SequenceBlock> own = groups_.OwnBlocks(cp_rank());
  for (const SequenceBlock block : own) {
    Begin(block);
    BeginRowSums(AttentionSums(block), stream_);
  }
  Run(scratch_.forward);
  for (const SequenceBlock block : own) {
    FinishRowSums(AttentionSums(block), groups_.Part(attention_.out, block),
                  groups_.Scalars(scratch_.lse_attention, block), stream_);
  }
  groups_.UnpackScalars(scratch_.lse_attention, saved_.lse_attention, cp_rank(),
                        stream_);
  groups_.UnpackScalars(scratch_.lse_kernel, saved_.lse_kernel, cp_rank(),
                        stream_);
  for (const Tensor& solution : {saved_.solution, saved_.solution32}) {
    if (solution.empty()) continue;
    groups_.Unpack(scratch_.x, Local(solution), cp_rank(), stream_);
  }
}

void ShardedSolve::RunBackward(ConstHeadTensor out,
                               const std::vector<Tensor>& gathered) {
  forward_ = false;
  forward_out_ = out;
  const Tensor& solution =
      saved_.solution32.empty() ? saved_.solution : saved_.solution32;
  groups_.Pack(Local(solution), scratch_.x, cp_rank(), stream_);
  groups_.PackScalars(saved_.lse_kernel, scratch_.lse_kernel, cp_rank(),
                      stream_);
  const std::vector<Tensor> of_attention = {scratch_.k, scratch_.x};
  for (const std::vector<Tensor>* buffers : {&of_attention, &gathered}) {
    for (int g = 0; g < groups_.count(); ++g) PostGather(*buffers, g);
  }
  groups_.PackScalars(saved_.lse_attention, scratch_.lse_attention, cp_rank(),
                      stream_);
  for (const SequenceBlock block : groups_.OwnBlocks(cp_rank())) {
    AttentionChunkDelta(
        groups_.Part(out, block), groups_.Part(attention_.d_out, block),
        groups_.Scalars(scratch_.delta_attention, block), stream_);
  }
  for (const Tensor& parts : {scratch_.d_k, scratch_.d_x, scratch_.d_q}) {
    if (parts.empty()) continue;
    SetZero(parts.raw(), parts.size_bytes(), stream_);
  }
  Run(scratch_.backward);
  if (!scratch_.d_q.empty()) ConvertHeads(d_q_, attention_.d_q, stream_);
}

void ShardedSolve::Run(const WavefrontSchedule& schedule) {
  const ProfileRange range(kMessages, stream_);
  ParallelContext& parallel = *sequence_.parallel;
  parallel.Note(
      RunWavefront(schedule, lane_, parallel.observer, stream_, this));
  // A schedule without messages has waited for nothing.
  lane_.Wait(gathers_.back(), stream_);
}

RowSums ShardedSolve::KernelSums(SequenceBlock rows) const {
  RowSums sums;
  sums.row_max = groups_.Scalars(scratch_.row_max_kernel, rows);
  sums.row_sum = groups_.Scalars(scratch_.row_sum_kernel, rows);
  sums.weighted = KernelX(rows);
  return sums;
}

AdjointRows ShardedSolve::Adjoint(SequenceBlock rows) const {
  AdjointRows adjoint;
  adjoint.lse = groups_.Scalars(scratch_.lse_kernel, rows);
  adjoint.delta = groups_.Scalars(scratch_.delta_kernel, rows);
  adjoint.y = groups_.Rows(scratch_.y, rows);
  return adjoint;
}

RowSums ShardedSolve::AttentionSums(SequenceBlock rows) const {
  RowSums sums;
  sums.row_max = groups_.Scalars(scratch_.row_max_attention, rows);
  sums.row_sum = groups_.Scalars(scratch_.row_sum_attention, rows);
  sums.weighted = groups_.Part(weighted_, rows);
  return sums;
}

ConstTensor ShardedSolve::Segments(SequenceBlock block) const {
  return groups_.Segments(context_.mask.segment_ids, block);
}

void ShardedSolve::Attend(SequenceBlock rows, SequenceBlock columns) {
  AttentionChunkForward(groups_.Part(attention_.q, rows),
                        groups_.Rows(scratch_.k, columns),
                        groups_.Rows(scratch_.x, columns), attention_.scale,
                        groups_.Mask(context_.mask.segment_ids, rows.group,
                                     rows.chunk, columns.chunk),
                        AttentionSums(rows), stream_);
}

void ShardedSolve::AttendBackward(SequenceBlock rows, SequenceBlock columns) {
  // The first actions of a backward: no message of the schedule came before.
  lane_.Wait(gathers_[static_cast<size_t>(rows.group)], stream_);
  AttentionChunkRows queries;
  queries.q = groups_.Part(attention_.q, rows);
  queries.d_out = groups_.Part(attention_.d_out, rows);
  queries.lse = groups_.Scalars(scratch_.lse_attention, rows);
  queries.delta = groups_.Scalars(scratch_.delta_attention, rows);
  queries.out = groups_.Part(forward_out_, rows);
  AttentionChunkGradients gradients;
  gradients.d_q = groups_.Part(d_q_, rows);
  gradients.d_k = groups_.Rows(scratch_.d_k, columns);
  gradients.d_v = groups_.Rows(scratch_.d_x, columns);
  AttentionChunkBackward(queries, groups_.Rows(scratch_.k, columns),
                         groups_.Rows(scratch_.x, columns), attention_.scale,
                         groups_.Mask(context_.mask.segment_ids, rows.group,
                                      rows.chunk, columns.chunk),
                         gradients, stream_);
}

HeadTensor HeadsInFloat32(HeadTensor heads, const Tensor& in_float32) {
  if (heads.empty() || heads.dtype == DType::kFloat32) return heads;
  return HeadsOf(in_float32, 0, heads.num_heads, heads.head_dim);
}

CommunicationLane& LaneOf(const SequenceShard& sequence) {
  CUBIT_CHECK(sequence.parallel != nullptr &&
              sequence.parallel->cp_lane != nullptr);
  CommunicationLane& lane = *sequence.parallel->cp_lane;
  CUBIT_CHECK_EQ(lane.size(), sequence.layout.cp_size());
  CUBIT_CHECK_EQ(lane.rank(), sequence.cp_rank);
  return lane;
}

void RotateShard(const ConstTensor& table, const SequenceShard& sequence,
                 HeadTensor x, Stream& stream) {
  if (table.empty()) return;
  const ProfileRange range(kRotary, stream);
  const SequenceLayout& layout = sequence.layout;
  for (const int chunk : layout.ChunksOf(sequence.cp_rank)) {
    RotaryForward(
        table, layout.GlobalBegin(chunk),
        SliceSequence(x, layout.LocalBegin(chunk), layout.chunk_len()), stream);
  }
}

void RotateShardBackward(const ConstTensor& table,
                         const SequenceShard& sequence, HeadTensor d_x,
                         Stream& stream) {
  if (table.empty()) return;
  const ProfileRange range(kRotary, stream);
  const SequenceLayout& layout = sequence.layout;
  for (const int chunk : layout.ChunksOf(sequence.cp_rank)) {
    RotaryBackward(
        table, layout.GlobalBegin(chunk),
        SliceSequence(d_x, layout.LocalBegin(chunk), layout.chunk_len()),
        stream);
  }
}

}  // namespace cubit
