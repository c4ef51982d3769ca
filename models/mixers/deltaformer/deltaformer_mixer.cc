// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/deltaformer/deltaformer_mixer.h"

#include <cmath>

#include "ops/attention.h"
#include "ops/decode.h"
#include "ops/delta_solve.h"
#include "ops/heads.h"
#include "ops/rotary.h"

namespace cubit {

DeltaFormerMixer::DeltaFormerMixer(const DeltaFormerOptions& options,
                                   int64_t head_dim)
    : options_(options),
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

void DeltaFormerMixer::Prepare(const MixerContext& context, int64_t position,
                               const Views<HeadTensor>& views) const {
  const ConstTensor& table = context.rotary_table;
  Stream& stream = *context.stream;
  if (!table.empty()) {
    RotaryForward(table, position, views.q, stream);
    RotaryForward(table, position, views.k, stream);
    if (owns_w()) RotaryForward(table, position, views.w, stream);
  }
  if (options_.beta == DeltaBeta::kSigmoid) {
    SigmoidHeads(views.beta, views.beta, stream);
  }
}

std::unique_ptr<MixerSaved> DeltaFormerMixer::AllocateSaved(
    const MixerShape& shape, Arena& arena) const {
  auto saved = std::make_unique<DeltaFormerSaved>();
  saved->lse_kernel = arena.Allocate(DType::kFloat32, shape.per_token());
  saved->lse_attention = arena.Allocate(DType::kFloat32, shape.per_token());
  saved->solution = arena.Allocate(DType::kFloat32, shape.rows());
  return saved;
}

std::unique_ptr<MixerScratch> DeltaFormerMixer::AllocateScratch(
    const MixerShape& shape, Arena& arena) const {
  auto scratch = std::make_unique<DeltaFormerScratch>();
  scratch->d_solution = arena.Allocate(DType::kFloat32, shape.rows());
  scratch->d_k = arena.Allocate(DType::kFloat32, shape.rows());
  if (!owns_w()) {
    scratch->d_w = arena.Allocate(DType::kFloat32, shape.rows());
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
  const HeadTensor x = HeadsOf(kept.solution, 0, heads, head_dim_);
  DeltaSolveForward(views.w, views.k, views.v, views.beta, scale_, context.mask,
                    SolvePrecision::kBFloat16x3, 0, x, kept.lse_kernel,
                    *context.stream);
  AttentionForward(views.q, views.k, x, scale_, context.mask,
                   HeadsOf(out, 0, heads, head_dim_), kept.lse_attention,
                   *context.stream);
}

void DeltaFormerMixer::Backward(const MixerContext& context,
                                ConstTensor columns, const MixerSaved& saved,
                                ConstTensor out, ConstTensor d_out,
                                MixerScratch* scratch, Tensor d_columns,
                                const std::vector<Tensor>&) const {
  const auto& kept = static_cast<const DeltaFormerSaved&>(saved);
  auto& work = *static_cast<DeltaFormerScratch*>(scratch);
  const auto views = Split<ConstHeadTensor>(columns);
  const auto d_views = Split<HeadTensor>(d_columns);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  const ConstHeadTensor x =
      HeadsOf(ConstTensor(kept.solution), 0, heads, head_dim_);
  const HeadTensor d_x = HeadsOf(work.d_solution, 0, heads, head_dim_);
  const HeadTensor d_k = HeadsOf(work.d_k, 0, heads, head_dim_);
  const HeadTensor d_w =
      owns_w() ? d_views.w : HeadsOf(work.d_w, 0, heads, head_dim_);

  AttentionBackward(views.q, views.k, x, HeadsOf(out, 0, heads, head_dim_),
                    kept.lse_attention, HeadsOf(d_out, 0, heads, head_dim_),
                    scale_, context.mask, AttentionAccumulate(), d_views.q,
                    d_views.k, d_x, work.delta, stream);
  DeltaSolveBackward(views.w, views.k, views.v, views.beta, scale_,
                     context.mask, SolvePrecision::kBFloat16x3, x,
                     kept.lse_kernel, d_x, d_x, d_w, d_k, d_views.v,
                     d_views.beta, stream);
  AddHeads(d_k, d_views.k, stream);
  if (!owns_w()) AddHeads(d_w, d_views.w, stream);
  if (!context.rotary_table.empty()) {
    RotaryBackward(context.rotary_table, 0, d_views.q, stream);
    RotaryBackward(context.rotary_table, 0, d_views.k, stream);
    if (owns_w()) RotaryBackward(context.rotary_table, 0, d_views.w, stream);
  }
  if (options_.beta == DeltaBeta::kSigmoid) {
    SigmoidHeadsBackward(d_views.beta, views.beta, d_views.beta, stream);
  }
}

double DeltaFormerMixer::ForwardFlops(const MixerShape& shape) const {
  // The solve costs what the attention does.
  return 2 * CausalAttentionFlops(shape);
}

std::unique_ptr<MixerCache> DeltaFormerMixer::AllocateCache(
    const MixerShape& shape, Arena& arena) const {
  auto cache = std::make_unique<DeltaFormerCache>();
  cache->k = arena.Allocate(DType::kFloat32, shape.rows());
  cache->solution = arena.Allocate(DType::kFloat32, shape.rows());
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
