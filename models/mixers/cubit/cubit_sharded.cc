// SPDX-License-Identifier: Apache-2.0
//
// Cubit on sequence shards: the wavefront of sharded_solve.h with the chunked
// KRR of ops/chunked_solve.h.

#include <memory>
#include <vector>

#include "models/mixers/cubit/cubit_mixer.h"
#include "models/mixers/sequence_groups.h"
#include "models/mixers/sharded_solve.h"
#include "models/mixers/solve_dtype.h"
#include "ops/chunked_solve.h"
#include "ops/convert_heads.h"
#include "ops/heads.h"
#include "ops/krr.h"
#include "runtime/check.h"

namespace cubit {

class CubitMixer::ShardedCall : public ShardedSolve {
 public:
  // The system's tensors, local views [B, Tl, H, K]; gradients in the backward
  // alone.
  struct System {
    ConstHeadTensor v;
    ConstTensor log_lambda;  // [H]
    HeadTensor d_v;
    HeadTensor d_r;       // fp32, zero at first
    Tensor d_log_lambda;  // [H]
  };

  ShardedCall(const MixerContext& context, const SequenceShard& sequence,
              const ShardedAttention& attention, const CubitSaved& kept,
              const System& system, CubitShardedScratch* scratch)
      : ShardedSolve(context, sequence, attention, kept, scratch),
        work_(*scratch),
        kept_(kept),
        system_(system) {}

  void Forward(const Views<HeadTensor>& views);
  void Backward(const Views<ConstHeadTensor>& views, ConstHeadTensor out);

 private:
  void Begin(SequenceBlock rows) override {
    BeginKrrRows(Chunk(rows), KernelSums(rows), stream());
  }
  void Solve(SequenceBlock rows) override;
  void Update(SequenceBlock rows, SequenceBlock columns) override;
  void AdjointSolve(SequenceBlock columns) override;
  void AdjointUpdate(SequenceBlock rows, SequenceBlock columns) override;
  void ScoreGradients(SequenceBlock rows, SequenceBlock columns) override;
  absl::Status ReduceKeyGradients(int group, Communicator& communicator,
                                  Stream& stream) override {
    return groups_.Reduce(work_.d_keys, group, communicator, stream);
  }

  // What both passes need of the rank's own chunks, into its blocks.
  void PackSystem(ConstHeadTensor k, ConstHeadTensor r);
  bool r_is_key() const { return work_.r.raw() == work_.k.raw(); }
  KrrChunk Chunk(SequenceBlock block) const {
    return {groups_.Rows(work_.r, block),
            groups_.Scalars(work_.column_scale, block), Segments(block)};
  }
  KrrRightSide RightSide(SequenceBlock block) const {
    return {groups_.Part(system_.v, block),
            groups_.Scalars(work_.value_scale, block),
            groups_.Heads(system_.log_lambda, block.group)};
  }

  CubitShardedScratch& work_;
  const CubitSaved& kept_;
  const System system_;
};

void CubitMixer::ShardedCall::PackSystem(ConstHeadTensor k, ConstHeadTensor r) {
  groups_.Pack(k, work_.k, cp_rank(), stream());
  if (!r_is_key()) groups_.Pack(r, work_.r, cp_rank(), stream());
  groups_.PackScalars(kept_.column_scale, work_.column_scale, cp_rank(),
                      stream());
  groups_.PackScalars(kept_.value_scale, work_.value_scale, cp_rank(),
                      stream());
}

void CubitMixer::ShardedCall::Forward(const Views<HeadTensor>& views) {
  PackSystem(views.k, views.r);
  std::vector<Tensor> gathered = {work_.r, work_.column_scale};
  if (!r_is_key()) gathered.push_back(work_.k);
  RunForward(gathered);
}

void CubitMixer::ShardedCall::Backward(const Views<ConstHeadTensor>& views,
                                       ConstHeadTensor out) {
  PackSystem(views.k, views.r);
  std::vector<Tensor> system = {work_.column_scale, work_.lse_kernel};
  if (!r_is_key()) system.push_back(work_.r);
  for (const Tensor& sums : {work_.d_keys, work_.row_sums}) {
    SetZero(sums.raw(), sums.size_bytes(), stream());
  }
  RunBackward(out, system);
  for (const SequenceBlock block : groups_.OwnBlocks(cp_rank())) {
    const HeadTensor d_r = groups_.Part(system_.d_r, block);
    KrrChunkFinish(Chunk(block), groups_.Scalars(work_.row_sums, block), d_r,
                   groups_.Rows(work_.d_keys, block), d_r,
                   groups_.Scalars(work_.d_column_scale, block), stream());
  }
  groups_.UnpackScalars(work_.d_column_scale, work_.local_d_column_scale,
                        cp_rank(), stream());
  groups_.UnpackScalars(work_.d_value_scale, work_.local_d_value_scale,
                        cp_rank(), stream());
}

void CubitMixer::ShardedCall::Solve(SequenceBlock rows) {
  KrrChunkSolve(Chunk(rows), RightSide(rows), KernelSums(rows),
                groups_.Rows(work_.x, rows),
                groups_.Scalars(work_.lse_kernel, rows), KernelX(rows),
                stream());
}

void CubitMixer::ShardedCall::Update(SequenceBlock rows,
                                     SequenceBlock columns) {
  KrrChunkUpdate(Chunk(rows), Chunk(columns), groups_.Rows(work_.x, columns),
                 KernelSums(rows), stream());
}

void CubitMixer::ShardedCall::AdjointSolve(SequenceBlock columns) {
  const HeadTensor y = groups_.Rows(work_.y, columns);
  KrrChunkAdjointSolve(Chunk(columns),
                       groups_.Scalars(work_.lse_kernel, columns),
                       groups_.Heads(system_.log_lambda, columns.group),
                       groups_.Rows(work_.d_x, columns), y, stream());
  KrrRowGradients gradients;
  gradients.d_v = groups_.Part(system_.d_v, columns);
  gradients.d_value_scale = groups_.Scalars(work_.d_value_scale, columns);
  gradients.d_log_lambda = groups_.Heads(system_.d_log_lambda, columns.group);
  gradients.delta = groups_.Scalars(work_.delta_kernel, columns);
  KrrChunkRowGradients(RightSide(columns), groups_.Rows(work_.x, columns),
                       KernelX(columns), y, gradients, stream());
}

void CubitMixer::ShardedCall::AdjointUpdate(SequenceBlock rows,
                                            SequenceBlock columns) {
  KrrChunkAdjointUpdate(Chunk(rows), groups_.Scalars(work_.lse_kernel, rows),
                        groups_.Rows(work_.y, rows), Chunk(columns),
                        groups_.Rows(work_.d_x, columns), stream());
}

void CubitMixer::ShardedCall::ScoreGradients(SequenceBlock rows,
                                             SequenceBlock columns) {
  KrrScoreGradients gradients;
  gradients.d_queries = groups_.Part(system_.d_r, rows);
  gradients.d_keys = groups_.Rows(work_.d_keys, columns);
  gradients.row_sums = groups_.Scalars(work_.row_sums, rows);
  KrrChunkScoreGradients(Chunk(rows), Adjoint(rows), Chunk(columns),
                         groups_.Rows(work_.x, columns),
                         rows.chunk == columns.chunk, gradients, stream());
}

std::unique_ptr<MixerSaved> CubitMixer::AllocateShardedSaved(
    const MixerShape& shape, const SequenceLayout&, Arena& arena) const {
  std::unique_ptr<CubitSaved> saved = AllocateKept(shape, arena);
  saved->kernel_x = arena.Allocate(DType::kFloat32, shape.rows());
  return saved;
}

std::unique_ptr<MixerScratch> CubitMixer::AllocateShardedScratch(
    const MixerShape& shape, const SequenceLayout& layout, Arena& arena) const {
  const DType solve_dtype = SolveDType(precision_, shape.dtype);
  auto scratch =
      std::make_unique<CubitShardedScratch>(shape, solve_dtype, layout, arena);
  const SequenceGroups& groups = scratch->groups;
  scratch->r = options_.share ? scratch->k
                              : groups.AllocateRows(BlockSet::kAll, solve_dtype,
                                                    head_dim_, arena);
  scratch->column_scale =
      groups.AllocateScalars(BlockSet::kAll, DType::kFloat32, arena);
  scratch->d_keys =
      groups.AllocateRows(BlockSet::kAll, DType::kFloat32, head_dim_, arena);
  for (Tensor* scalars : {&scratch->value_scale, &scratch->d_column_scale,
                          &scratch->d_value_scale}) {
    *scalars = groups.AllocateScalars(BlockSet::kOwn, DType::kFloat32, arena);
  }
  scratch->row_sums =
      groups.AllocateScalars(BlockSet::kOwn, DType::kFloat64, arena);
  for (Tensor* local :
       {&scratch->local_d_column_scale, &scratch->local_d_value_scale}) {
    *local = arena.Allocate(DType::kFloat32, shape.per_token());
  }
  if (options_.share) {
    scratch->d_r = arena.Allocate(shape.dtype, shape.rows());
  }
  if (shape.dtype != DType::kFloat32) {
    scratch->d_r32 = arena.Allocate(DType::kFloat32, shape.rows());
  }
  return scratch;
}

void CubitMixer::ForwardSharded(const MixerContext& context,
                                const SequenceShard& sequence, Tensor columns,
                                MixerSaved* saved, MixerScratch* scratch,
                                Tensor out) const {
  auto& kept = *static_cast<CubitSaved*>(saved);
  const auto views = Split<HeadTensor>(columns);
  const auto scalars = Named(context.scalars);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  RotateShard(context.rotary_table, sequence, views.q, stream);
  RotateShard(context.rotary_table, sequence, views.k, stream);
  if (!options_.share) {
    RotateShard(context.rotary_table, sequence, views.r, stream);
  }
  KrrFactorsForward(views.r, views.lrr, scalars.scale, scalars.lower,
                    scalars.upper_scale, kept.column_scale, kept.value_scale,
                    stream);
  ShardedAttention attention;
  attention.q = views.q;
  attention.scale = attention_scale_;
  attention.out = HeadsOf(out, 0, heads, head_dim_);
  ShardedCall::System system;
  system.v = views.v;
  system.log_lambda = scalars.log_lambda;
  ShardedCall(context, sequence, attention, kept, system,
              static_cast<CubitShardedScratch*>(scratch))
      .Forward(views);
}

// The interface has nine parameters.
// NOLINTNEXTLINE(readability-function-size)
void CubitMixer::BackwardSharded(const MixerContext& context,
                                 const SequenceShard& sequence,
                                 ConstTensor columns, const MixerSaved& saved,
                                 ConstTensor out, ConstTensor d_out,
                                 MixerScratch* scratch, Tensor d_columns,
                                 const std::vector<Tensor>& d_scalars) const {
  const auto& kept = static_cast<const CubitSaved&>(saved);
  auto& work = *static_cast<CubitShardedScratch*>(scratch);
  const auto views = Split<ConstHeadTensor>(columns);
  const auto d_views = Split<HeadTensor>(d_columns);
  const auto scalars = Named(context.scalars);
  const auto gradients = Named(d_scalars);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  const HeadTensor d_r =
      options_.share ? HeadsOf(work.d_r, 0, heads, head_dim_) : d_views.r;
  for (const Tensor& sums : {d_columns, work.d_r, work.d_r32}) {
    if (sums.empty()) continue;
    SetZero(sums.raw(), sums.size_bytes(), stream);
  }

  ShardedAttention attention;
  attention.q = views.q;
  attention.scale = attention_scale_;
  attention.d_out = HeadsOf(d_out, 0, heads, head_dim_);
  attention.d_q = d_views.q;
  ShardedCall::System system;
  system.v = views.v;
  system.log_lambda = scalars.log_lambda;
  system.d_v = d_views.v;
  system.d_r = HeadsInFloat32(d_r, work.d_r32);
  system.d_log_lambda = gradients.log_lambda;
  ShardedCall(context, sequence, attention, kept, system, &work)
      .Backward(views, HeadsOf(out, 0, heads, head_dim_));
  if (!work.d_r32.empty()) ConvertHeads(system.d_r, d_r, stream);

  KrrFactorsBackward(
      views.r, views.lrr, scalars.scale, scalars.upper_scale, kept.column_scale,
      work.local_d_column_scale, work.local_d_value_scale, d_r, d_views.lrr,
      gradients.scale, gradients.lower, gradients.upper_scale, stream);
  work.groups.Unpack(work.d_k, d_views.k, sequence.cp_rank, stream);
  if (options_.share) AddHeads(d_r, d_views.k, stream);
  RotateShardBackward(context.rotary_table, sequence, d_views.q, stream);
  RotateShardBackward(context.rotary_table, sequence, d_views.k, stream);
  if (!options_.share) {
    RotateShardBackward(context.rotary_table, sequence, d_views.r, stream);
  }
}

void CubitMixer::HealthSharded(const MixerContext& context, ConstTensor columns,
                               const MixerSaved& saved, Tensor result) const {
  const auto& kept = static_cast<const CubitSaved&>(saved);
  const auto views = Split<ConstHeadTensor>(columns);
  KrrHealth(
      views.r, views.v, kept.column_scale, kept.value_scale,
      Named(context.scalars).log_lambda,
      HeadsOf(ConstTensor(kept.solution), 0, views.q.num_heads, head_dim_),
      kept.lse_kernel, result, *context.stream);
}

}  // namespace cubit
