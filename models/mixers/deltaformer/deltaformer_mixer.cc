// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/deltaformer/deltaformer_mixer.h"

#include <cmath>

#include "absl/types/span.h"

#include "models/mixers/solve_dtype.h"
#include "ops/attention.h"
#include "ops/convert_heads.h"
#include "ops/decode.h"
#include "ops/delta_solve.h"
#include "ops/heads.h"
#include "ops/rotary.h"
#include "runtime/profile_range.h"

namespace cubit {

namespace {

// Where the time goes.
constexpr char kRotary[] = "rotary";
constexpr char kSolve[] = "solve";
constexpr char kAttention[] = "attention";

}  // namespace

DeltaFormerMixer::DeltaFormerMixer(const DeltaFormerOptions& options,
                                   KrrPrecision precision, int64_t head_dim)
    : options_(options),
      precision_(precision),
      head_dim_(head_dim),
      scale_(
          static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))) {}

std::vector<MixerProjection> DeltaFormerMixer::projections() const {
  std::vector<MixerProjection> list = {
      {"q_proj", head_dim_}, {"k_proj", head_dim_}, {"v_proj", head_dim_}};
  if (owns_w()) list.push_back({"w_proj", head_dim_});
  list.push_back({"beta_proj", 1});
  return list;
}

template <typename View, typename Columns>
DeltaFormerMixer::Views<View> DeltaFormerMixer::Split(
    const Columns& columns) const {
  const std::vector<MixerProjection> list = projections();
  const int64_t per_head = ProjectionColumn(list, list.size(), 1);
  const int64_t heads = columns.dim(2) / per_head;
  const auto view = [&](size_t index) {
    return HeadsOf(columns, ProjectionColumn(list, index, heads), heads,
                   list[index].width);
  };
  Views<View> views;
  views.q = view(0);
  views.k = view(1);
  views.v = view(2);
  views.w = owns_w()                           ? view(3)
            : options_.w == DeltaWeights::kKey ? views.k
                                               : views.q;
  views.beta = view(list.size() - 1);
  return views;
}

// For deltaformer_sharded.cc.
template DeltaFormerMixer::Views<HeadTensor> DeltaFormerMixer::Split(
    const Tensor&) const;
template DeltaFormerMixer::Views<ConstHeadTensor> DeltaFormerMixer::Split(
    const ConstTensor&) const;

void DeltaFormerMixer::Prepare(const MixerContext& context, int64_t position,
                               const Views<HeadTensor>& views) const {
  const ConstTensor& table = context.rotary_table;
  Stream& stream = *context.stream;
  if (!table.empty()) {
    const ProfileRange range(kRotary, stream);
    const HeadTensor rotated[] = {views.q, views.k, views.w};
    RotaryForward(table, position,
                  absl::MakeConstSpan(rotated, owns_w() ? 3 : 2), stream);
  }
  if (options_.beta == DeltaBeta::kSigmoid) {
    SigmoidHeads(views.beta, views.beta, stream);
  }
}

std::unique_ptr<DeltaFormerSaved> DeltaFormerMixer::AllocateKept(
    const MixerShape& shape, Arena& arena) const {
  auto saved = std::make_unique<DeltaFormerSaved>();
  saved->lse_kernel = arena.Allocate(DType::kFloat32, shape.per_token());
  saved->lse_attention = arena.Allocate(DType::kFloat32, shape.per_token());
  saved->solution = arena.Allocate(shape.dtype, shape.rows());
  if (SolvesInFloat32(precision_, shape.dtype)) {
    saved->solution32 = arena.Allocate(DType::kFloat32, shape.rows());
  }
  return saved;
}

std::unique_ptr<MixerSaved> DeltaFormerMixer::AllocateSaved(
    const MixerShape& shape, Arena& arena) const {
  std::unique_ptr<DeltaFormerSaved> saved = AllocateKept(shape, arena);
  if (SolvesInFloat32(precision_, shape.dtype)) {
    for (Tensor* tensor : {&saved->w32, &saved->k32, &saved->v32}) {
      *tensor = arena.Allocate(DType::kFloat32, shape.rows());
    }
    saved->beta32 = arena.Allocate(
        DType::kFloat32, {shape.batch, shape.seq_len, shape.num_heads});
  }
  return saved;
}

std::unique_ptr<MixerScratch> DeltaFormerMixer::AllocateScratch(
    const MixerShape& shape, Arena& arena) const {
  auto scratch = std::make_unique<DeltaFormerScratch>();
  scratch->d_solution = arena.Allocate(shape.dtype, shape.rows());
  scratch->d_k = arena.Allocate(shape.dtype, shape.rows());
  if (!owns_w()) scratch->d_w = arena.Allocate(shape.dtype, shape.rows());
  if (SolvesInFloat32(precision_, shape.dtype)) {
    for (Tensor* tensor : {&scratch->d_w32, &scratch->d_k32, &scratch->d_v32,
                           &scratch->d_solution32}) {
      *tensor = arena.Allocate(DType::kFloat32, shape.rows());
    }
    scratch->d_beta32 = arena.Allocate(
        DType::kFloat32, {shape.batch, shape.seq_len, shape.num_heads});
  }
  scratch->delta = arena.Allocate(DType::kFloat32, shape.per_token());
  return scratch;
}

void DeltaFormerMixer::Forward(const MixerContext& context, Tensor columns,
                               MixerSaved* saved, Tensor out) const {
  auto& kept = *static_cast<DeltaFormerSaved*>(saved);
  const auto views = Split<HeadTensor>(columns);
  const int64_t heads = views.q.num_heads;
  Prepare(context, 0, views);
  SolveForward(context, views, &kept);
  const ProfileRange range(kAttention, *context.stream);
  AttentionForward(views.q, views.k,
                   HeadsOf(kept.solution, 0, heads, head_dim_), scale_,
                   context.mask, HeadsOf(out, 0, heads, head_dim_),
                   kept.lse_attention, *context.stream);
}

void DeltaFormerMixer::SolveForward(const MixerContext& context,
                                    const Views<HeadTensor>& views,
                                    DeltaFormerSaved* kept) const {
  Stream& stream = *context.stream;
  const ProfileRange range(kSolve, stream);
  const int64_t heads = views.q.num_heads;
  const HeadTensor solution = HeadsOf(kept->solution, 0, heads, head_dim_);
  Views<HeadTensor> solve = views;
  HeadTensor x = solution;
  const bool converted = !kept->w32.empty();
  if (converted) {
    solve.w = HeadsOf(kept->w32, 0, heads, head_dim_);
    solve.k = HeadsOf(kept->k32, 0, heads, head_dim_);
    solve.v = HeadsOf(kept->v32, 0, heads, head_dim_);
    solve.beta = HeadsOf(kept->beta32, 0, heads, 1);
    x = HeadsOf(kept->solution32, 0, heads, head_dim_);
    ConvertHeads(views.w, solve.w, stream);
    ConvertHeads(views.k, solve.k, stream);
    ConvertHeads(views.v, solve.v, stream);
    ConvertHeads(views.beta, solve.beta, stream);
  }
  DeltaSolveForward(solve.w, solve.k, solve.v, solve.beta, scale_, context.mask,
                    SolveWith(precision_), /*first_row=*/0, x, kept->lse_kernel,
                    stream);
  if (converted) ConvertHeads(x, solution, stream);
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void DeltaFormerMixer::Backward(const MixerContext& context,
                                ConstTensor columns, const MixerSaved& saved,
                                ConstTensor out, ConstTensor d_out,
                                MixerScratch* scratch, Tensor d_columns,
                                const std::vector<Tensor>&, Tensor /*health*/,
                                Tensor d_column_sums) const {
  const auto& kept = static_cast<const DeltaFormerSaved&>(saved);
  auto& work = *static_cast<DeltaFormerScratch*>(scratch);
  const auto views = Split<ConstHeadTensor>(columns);
  const auto d_views = Split<HeadTensor>(d_columns);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  const HeadTensor d_k = HeadsOf(work.d_k, 0, heads, head_dim_);
  const HeadTensor d_w =
      owns_w() ? d_views.w : HeadsOf(work.d_w, 0, heads, head_dim_);

  {
    const ProfileRange range(kAttention, stream);
    AttentionBackward(views.q, views.k,
                      HeadsOf(ConstTensor(kept.solution), 0, heads, head_dim_),
                      HeadsOf(out, 0, heads, head_dim_), kept.lse_attention,
                      HeadsOf(d_out, 0, heads, head_dim_), scale_, context.mask,
                      AttentionAccumulate(), d_views.q, d_views.k,
                      HeadsOf(work.d_solution, 0, heads, head_dim_), work.delta,
                      stream);
  }
  Views<HeadTensor> d_solve = d_views;
  d_solve.k = d_k;
  d_solve.w = d_w;
  SolveBackward(context, views, kept, work, d_solve);
  AddHeads(d_k, d_views.k, stream);
  if (!owns_w()) AddHeads(d_w, d_views.w, stream);
  if (!context.rotary_table.empty()) {
    const ProfileRange range(kRotary, stream);
    const HeadTensor rotated[] = {d_views.q, d_views.k, d_views.w};
    RotaryBackward(context.rotary_table, 0,
                   absl::MakeConstSpan(rotated, owns_w() ? 3 : 2), stream);
  }
  if (options_.beta == DeltaBeta::kSigmoid) {
    SigmoidHeadsBackward(d_views.beta, views.beta, d_views.beta, stream);
  }
  AddHeadSums(HeadsOf(d_columns, 0, 1, d_columns.dim(2)), d_column_sums,
              stream);
}

void DeltaFormerMixer::SolveBackward(const MixerContext& context,
                                     const Views<ConstHeadTensor>& views,
                                     const DeltaFormerSaved& kept,
                                     const DeltaFormerScratch& work,
                                     const Views<HeadTensor>& gradients) const {
  Stream& stream = *context.stream;
  const ProfileRange range(kSolve, stream);
  const int64_t heads = views.q.num_heads;
  const auto whole = [&](const auto& tensor) {
    return HeadsOf(tensor, 0, heads, head_dim_);
  };
  Views<ConstHeadTensor> solve = views;
  Views<HeadTensor> d = gradients;
  ConstHeadTensor x = whole(ConstTensor(kept.solution));
  HeadTensor d_x = whole(work.d_solution);
  const bool converted = !kept.w32.empty();
  if (converted) {
    solve.w = whole(ConstTensor(kept.w32));
    solve.k = whole(ConstTensor(kept.k32));
    solve.v = whole(ConstTensor(kept.v32));
    solve.beta = HeadsOf(ConstTensor(kept.beta32), 0, heads, 1);
    x = whole(ConstTensor(kept.solution32));
    d.w = whole(work.d_w32);
    d.k = whole(work.d_k32);
    d.v = whole(work.d_v32);
    d.beta = HeadsOf(work.d_beta32, 0, heads, 1);
    d_x = whole(work.d_solution32);
    ConvertHeads(whole(work.d_solution), d_x, stream);
  }
  DeltaSolveBackward(solve.w, solve.k, solve.v, solve.beta, scale_,
                     context.mask, SolveWith(precision_), x, kept.lse_kernel,
                     d_x, /*y=*/d_x, d.w, d.k, d.v, d.beta, stream);
  if (!converted) return;
  ConvertHeads(d.w, gradients.w, stream);
  ConvertHeads(d.k, gradients.k, stream);
  ConvertHeads(d.v, gradients.v, stream);
  ConvertHeads(d.beta, gradients.beta, stream);
}

double DeltaFormerMixer::ForwardFlops(const MixerShape& shape) const {
  // The solve costs what the attention does.
  return 2 * CausalAttentionFlops(shape);
}

std::unique_ptr<MixerCache> DeltaFormerMixer::AllocateCache(
    const MixerShape& shape, Arena& arena) const {
  auto cache = std::make_unique<DeltaFormerCache>();
  cache->k = arena.Allocate(shape.dtype, shape.rows());
  cache->solution = arena.Allocate(shape.dtype, shape.rows());
  return cache;
}

void DeltaFormerMixer::FillCache(ConstTensor columns, const MixerSaved& saved,
                                 MixerCache* cache, Stream& stream) const {
  const auto& kept = static_cast<const DeltaFormerSaved&>(saved);
  auto& state = *static_cast<DeltaFormerCache*>(cache);
  const auto views = Split<ConstHeadTensor>(columns);
  const int64_t heads = views.q.num_heads;
  const auto first_rows = [&](const Tensor& tensor) {
    return SliceSequence(HeadsOf(tensor, 0, heads, head_dim_), 0,
                         columns.dim(1));
  };
  CopyHeads(views.k, first_rows(state.k), stream);
  CopyHeads(HeadsOf(ConstTensor(kept.solution), 0, heads, head_dim_),
            first_rows(state.solution), stream);
}

void DeltaFormerMixer::Decode(const MixerContext& context, int64_t position,
                              Tensor columns, MixerCache* cache,
                              Tensor out) const {
  auto& state = *static_cast<DeltaFormerCache*>(cache);
  const auto views = Split<HeadTensor>(columns);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  Prepare(context, position, views);
  const HeadTensor k = HeadsOf(state.k, 0, heads, head_dim_);
  const HeadTensor x = HeadsOf(state.solution, 0, heads, head_dim_);
  CopyHeads(views.k, SliceSequence(k, position, 1), stream);
  DeltaDecode(views.w, k, views.v, views.beta, scale_, position, x, stream);
  AttentionDecode(views.q, k, x, scale_, position,
                  HeadsOf(out, 0, heads, head_dim_), stream);
}

}  // namespace cubit
