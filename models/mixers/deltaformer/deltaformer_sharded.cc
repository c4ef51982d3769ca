// SPDX-License-Identifier: Apache-2.0
//
// DeltaFormer on sequence shards: the wavefront of sharded_solve.h with the
// chunked delta system of ops/chunked_solve.h.

#include <memory>
#include <vector>

#include "models/mixers/deltaformer/deltaformer_mixer.h"
#include "models/mixers/sequence_groups.h"
#include "models/mixers/sharded_solve.h"
#include "models/mixers/solve_dtype.h"
#include "ops/chunked_solve.h"
#include "ops/convert_heads.h"
#include "ops/heads.h"
#include "runtime/check.h"

namespace cubit {

class DeltaFormerMixer::ShardedCall : public ShardedSolve {
 public:
  // The system's tensors, local views [B, Tl, H, K]; gradients in the backward
  // alone.
  struct System {
    ConstHeadTensor v;
    float scale = 1;
    HeadTensor d_v;
    HeadTensor d_w;     // fp32, zero at first
    HeadTensor d_beta;  // [B, Tl, H, 1]
  };

  ShardedCall(const MixerContext& context, const SequenceShard& sequence,
              const ShardedAttention& attention, const SolveSaved& kept,
              const System& system, DeltaFormerShardedScratch* scratch)
      : ShardedSolve(context, sequence, attention, kept, scratch),
        work_(*scratch),
        system_(system) {}

  void Forward(const Views<HeadTensor>& views);
  void Backward(const Views<ConstHeadTensor>& views, ConstHeadTensor out);

 private:
  void Begin(SequenceBlock rows) override {
    BeginRowSums(KernelSums(rows), stream());
  }
  void Solve(SequenceBlock rows) override;
  void Update(SequenceBlock rows, SequenceBlock columns) override;
  void AdjointSolve(SequenceBlock columns) override;
  void AdjointUpdate(SequenceBlock rows, SequenceBlock columns) override;
  void ScoreGradients(SequenceBlock rows, SequenceBlock columns) override;
  // The system's gradients of k are in d_k already.
  absl::Status ReduceKeyGradients(int, Communicator&, Stream&) override {
    return absl::OkStatus();
  }

  bool w_is_key() const { return work_.w.raw() == work_.k.raw(); }
  // What both passes need of the rank's own chunks, into its blocks.
  void PackSystem(const Views<ConstHeadTensor>& views);
  DeltaChunk Chunk(SequenceBlock block) const {
    return {groups_.Rows(work_.w, block), groups_.Rows(work_.k, block),
            groups_.Rows(work_.beta, block), Segments(block), system_.scale};
  }

  DeltaFormerShardedScratch& work_;
  const System system_;
};

void DeltaFormerMixer::ShardedCall::PackSystem(
    const Views<ConstHeadTensor>& views) {
  groups_.Pack(views.k, work_.k, cp_rank(), stream());
  if (!w_is_key()) groups_.Pack(views.w, work_.w, cp_rank(), stream());
  groups_.Pack(views.beta, work_.beta, cp_rank(), stream());
}

void DeltaFormerMixer::ShardedCall::Forward(const Views<HeadTensor>& views) {
  PackSystem({views.q, views.k, views.v, views.w, views.beta});
  RunForward({work_.k});
}

void DeltaFormerMixer::ShardedCall::Backward(
    const Views<ConstHeadTensor>& views, ConstHeadTensor out) {
  PackSystem(views);
  std::vector<Tensor> system = {work_.beta, work_.lse_kernel};
  if (!w_is_key()) system.push_back(work_.w);
  RunBackward(out, system);
}

void DeltaFormerMixer::ShardedCall::Solve(SequenceBlock rows) {
  DeltaChunkSolve(Chunk(rows), groups_.Part(system_.v, rows), KernelSums(rows),
                  groups_.Rows(work_.x, rows),
                  groups_.Scalars(work_.lse_kernel, rows), KernelX(rows),
                  stream());
}

void DeltaFormerMixer::ShardedCall::Update(SequenceBlock rows,
                                           SequenceBlock columns) {
  DeltaChunkUpdate(Chunk(rows), Chunk(columns), groups_.Rows(work_.x, columns),
                   KernelSums(rows), stream());
}

void DeltaFormerMixer::ShardedCall::AdjointSolve(SequenceBlock columns) {
  const HeadTensor y = groups_.Rows(work_.y, columns);
  DeltaChunkAdjointSolve(Chunk(columns),
                         groups_.Scalars(work_.lse_kernel, columns),
                         groups_.Rows(work_.d_x, columns), y, stream());
  CopyOrConvertHeads(y, groups_.Part(system_.d_v, columns), stream());
  DeltaChunkRowGradients(Chunk(columns), y, KernelX(columns),
                         groups_.Scalars(work_.delta_kernel, columns),
                         groups_.Part(system_.d_beta, columns), stream());
}

void DeltaFormerMixer::ShardedCall::AdjointUpdate(SequenceBlock rows,
                                                  SequenceBlock columns) {
  DeltaChunkAdjointUpdate(Chunk(rows), groups_.Scalars(work_.lse_kernel, rows),
                          groups_.Rows(work_.y, rows), Chunk(columns),
                          groups_.Rows(work_.d_x, columns), stream());
}

void DeltaFormerMixer::ShardedCall::ScoreGradients(SequenceBlock rows,
                                                   SequenceBlock columns) {
  DeltaChunkScoreGradients(Chunk(rows), Adjoint(rows), Chunk(columns),
                           groups_.Rows(work_.x, columns),
                           rows.chunk == columns.chunk,
                           groups_.Part(system_.d_w, rows),
                           groups_.Rows(work_.d_k, columns), stream());
}

std::unique_ptr<MixerSaved> DeltaFormerMixer::AllocateShardedSaved(
    const MixerShape& shape, const SequenceLayout&, Arena& arena) const {
  std::unique_ptr<DeltaFormerSaved> saved = AllocateKept(shape, arena);
  saved->kernel_x = arena.Allocate(DType::kFloat32, shape.rows());
  return saved;
}

std::unique_ptr<MixerScratch> DeltaFormerMixer::AllocateShardedScratch(
    const MixerShape& shape, const SequenceLayout& layout, Arena& arena) const {
  const DType solve_dtype = SolveDType(precision_, shape.dtype);
  auto scratch = std::make_unique<DeltaFormerShardedScratch>(shape, solve_dtype,
                                                             layout, arena);
  const SequenceGroups& groups = scratch->groups;
  scratch->w =
      options_.w == DeltaWeights::kKey
          ? scratch->k
          : groups.AllocateRows(BlockSet::kAll, solve_dtype, head_dim_, arena);
  scratch->beta = groups.AllocateRows(BlockSet::kAll, solve_dtype, 1, arena);
  if (!owns_w()) scratch->d_w = arena.Allocate(shape.dtype, shape.rows());
  if (shape.dtype != DType::kFloat32) {
    scratch->d_w32 = arena.Allocate(DType::kFloat32, shape.rows());
  }
  return scratch;
}

void DeltaFormerMixer::ForwardSharded(const MixerContext& context,
                                      const SequenceShard& sequence,
                                      Tensor columns, MixerSaved* saved,
                                      MixerScratch* scratch, Tensor out) const {
  const auto views = Split<HeadTensor>(columns);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  RotateShard(context.rotary_table, sequence, views.q, stream);
  RotateShard(context.rotary_table, sequence, views.k, stream);
  if (owns_w()) RotateShard(context.rotary_table, sequence, views.w, stream);
  if (options_.beta == DeltaBeta::kSigmoid) {
    SigmoidHeads(views.beta, views.beta, stream);
  }
  ShardedAttention attention;
  attention.q = views.q;
  attention.scale = scale_;
  attention.out = HeadsOf(out, 0, heads, head_dim_);
  ShardedCall::System system;
  system.v = views.v;
  system.scale = scale_;
  ShardedCall(context, sequence, attention,
              *static_cast<const DeltaFormerSaved*>(saved), system,
              static_cast<DeltaFormerShardedScratch*>(scratch))
      .Forward(views);
}

// The interface has nine parameters.
// NOLINTNEXTLINE(readability-function-size)
void DeltaFormerMixer::BackwardSharded(const MixerContext& context,
                                       const SequenceShard& sequence,
                                       ConstTensor columns,
                                       const MixerSaved& saved, ConstTensor out,
                                       ConstTensor d_out, MixerScratch* scratch,
                                       Tensor d_columns,
                                       const std::vector<Tensor>&) const {
  const auto& kept = static_cast<const DeltaFormerSaved&>(saved);
  auto& work = *static_cast<DeltaFormerShardedScratch*>(scratch);
  const auto views = Split<ConstHeadTensor>(columns);
  const auto d_views = Split<HeadTensor>(d_columns);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  const HeadTensor d_w =
      owns_w() ? d_views.w : HeadsOf(work.d_w, 0, heads, head_dim_);
  for (const Tensor& sums : {d_columns, work.d_w, work.d_w32}) {
    if (sums.empty()) continue;
    SetZero(sums.raw(), sums.size_bytes(), stream);
  }

  ShardedAttention attention;
  attention.q = views.q;
  attention.scale = scale_;
  attention.d_out = HeadsOf(d_out, 0, heads, head_dim_);
  attention.d_q = d_views.q;
  ShardedCall::System system;
  system.v = views.v;
  system.scale = scale_;
  system.d_v = d_views.v;
  system.d_w = HeadsInFloat32(d_w, work.d_w32);
  system.d_beta = d_views.beta;
  ShardedCall(context, sequence, attention, kept, system, &work)
      .Backward(views, HeadsOf(out, 0, heads, head_dim_));
  if (!work.d_w32.empty()) ConvertHeads(system.d_w, d_w, stream);

  work.groups.Unpack(work.d_k, d_views.k, sequence.cp_rank, stream);
  if (!owns_w()) AddHeads(d_w, d_views.w, stream);
  RotateShardBackward(context.rotary_table, sequence, d_views.q, stream);
  RotateShardBackward(context.rotary_table, sequence, d_views.k, stream);
  if (owns_w()) {
    RotateShardBackward(context.rotary_table, sequence, d_views.w, stream);
  }
  if (options_.beta == DeltaBeta::kSigmoid) {
    SigmoidHeadsBackward(d_views.beta, views.beta, d_views.beta, stream);
  }
}

}  // namespace cubit
