// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/cubit/cubit_mixer.h"

#include <cmath>

#include "ops/attention.h"
#include "ops/decode.h"
#include "ops/heads.h"
#include "ops/krr.h"
#include "ops/rotary.h"

namespace cubit {
namespace {

// Initial values of the paper's code.
constexpr double kInitialScale = 1.0;
constexpr double kInitialLower = 0.5;
constexpr double kInitialUpperScale = 1.5;

}  // namespace

CubitMixer::CubitMixer(const CubitOptions& options, int64_t head_dim)
    : options_(options),
      head_dim_(head_dim),
      attention_scale_(
          static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))) {}

std::vector<MixerProjection> CubitMixer::projections() const {
  std::vector<MixerProjection> list = {
      {"q_proj", head_dim_}, {"k_proj", head_dim_}, {"v_proj", head_dim_}};
  if (!options_.share) list.push_back({"r_proj", head_dim_});
  if (options_.lrr) list.push_back({"lrr_proj", 1});
  return list;
}

std::vector<MixerScalar> CubitMixer::scalars() const {
  std::vector<MixerScalar> list = {
      {"log_lambda", std::log(options_.lambda_init)}, {"scale", kInitialScale}};
  if (options_.lrr) {
    list.push_back({"lower", kInitialLower});
    list.push_back({"upper_scale", kInitialUpperScale});
  }
  return list;
}

template <typename View, typename Columns>
CubitMixer::Views<View> CubitMixer::Split(const Columns& columns) const {
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
  views.r = options_.share ? views.k : view(3);
  if (options_.lrr) views.lrr = view(list.size() - 1);
  return views;
}

void CubitMixer::Rotate(const MixerContext& context, int64_t position,
                        const Views<HeadTensor>& views) const {
  const ConstTensor& table = context.rotary_table;
  if (table.empty()) return;
  RotaryForward(table, position, views.q, *context.stream);
  RotaryForward(table, position, views.k, *context.stream);
  if (!options_.share) {
    RotaryForward(table, position, views.r, *context.stream);
  }
}

template <typename T>
CubitMixer::Scalars<T> CubitMixer::Named(const std::vector<T>& scalars) const {
  CUBIT_CHECK_EQ(scalars.size(), options_.lrr ? 4u : 2u);
  Scalars<T> named;
  named.log_lambda = scalars[0];
  named.scale = scalars[1];
  if (options_.lrr) {
    named.lower = scalars[2];
    named.upper_scale = scalars[3];
  }
  return named;
}

std::unique_ptr<MixerSaved> CubitMixer::AllocateSaved(const MixerShape& shape,
                                                      Arena& arena) const {
  auto saved = std::make_unique<CubitSaved>();
  for (Tensor* tensor : {&saved->column_scale, &saved->value_scale,
                         &saved->lse_kernel, &saved->lse_attention}) {
    *tensor = arena.Allocate(DType::kFloat32, shape.per_token());
  }
  saved->solution = arena.Allocate(DType::kFloat32, shape.rows());
  return saved;
}

std::unique_ptr<MixerScratch> CubitMixer::AllocateScratch(
    const MixerShape& shape, Arena& arena) const {
  auto scratch = std::make_unique<CubitScratch>();
  scratch->d_solution = arena.Allocate(DType::kFloat32, shape.rows());
  if (options_.share) {
    scratch->d_r = arena.Allocate(DType::kFloat32, shape.rows());
  }
  for (Tensor* tensor :
       {&scratch->d_column_scale, &scratch->d_value_scale, &scratch->delta}) {
    *tensor = arena.Allocate(DType::kFloat32, shape.per_token());
  }
  return scratch;
}

void CubitMixer::Forward(const MixerContext& context, Tensor columns,
                         MixerSaved* saved, Tensor out) const {
  auto& kept = *static_cast<CubitSaved*>(saved);
  const auto views = Split<HeadTensor>(columns);
  const auto scalars = Named(context.scalars);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  Rotate(context, 0, views);
  // The rotation keeps |r|, so the factors may come after it.
  KrrFactorsForward(views.r, views.lrr, scalars.scale, scalars.lower,
                    scalars.upper_scale, kept.column_scale, kept.value_scale,
                    stream);
  const HeadTensor x = HeadsOf(kept.solution, 0, heads, head_dim_);
  KrrSolveForward(views.r, views.v, kept.column_scale, kept.value_scale,
                  scalars.log_lambda, context.mask, SolvePrecision::kBFloat16x3,
                  0, x, kept.lse_kernel, stream);
  AttentionForward(views.q, views.k, x, attention_scale_, context.mask,
                   HeadsOf(out, 0, heads, head_dim_), kept.lse_attention,
                   stream);
}

void CubitMixer::Backward(const MixerContext& context, ConstTensor columns,
                          const MixerSaved& saved, ConstTensor out,
                          ConstTensor d_out, MixerScratch* scratch,
                          Tensor d_columns,
                          const std::vector<Tensor>& d_scalars) const {
  const auto& kept = static_cast<const CubitSaved&>(saved);
  auto& work = *static_cast<CubitScratch*>(scratch);
  const auto views = Split<ConstHeadTensor>(columns);
  const auto d_views = Split<HeadTensor>(d_columns);
  const auto scalars = Named(context.scalars);
  const auto gradients = Named(d_scalars);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  const ConstHeadTensor x =
      HeadsOf(ConstTensor(kept.solution), 0, heads, head_dim_);
  const HeadTensor d_x = HeadsOf(work.d_solution, 0, heads, head_dim_);
  const HeadTensor d_r =
      options_.share ? HeadsOf(work.d_r, 0, heads, head_dim_) : d_views.r;

  AttentionBackward(views.q, views.k, x, HeadsOf(out, 0, heads, head_dim_),
                    kept.lse_attention, HeadsOf(d_out, 0, heads, head_dim_),
                    attention_scale_, context.mask, AttentionAccumulate(),
                    d_views.q, d_views.k, d_x, work.delta, stream);
  KrrSolveBackward(views.r, views.v, kept.column_scale, kept.value_scale,
                   scalars.log_lambda, context.mask,
                   SolvePrecision::kBFloat16x3, x, kept.lse_kernel, d_x, d_x,
                   d_r, d_views.v, work.d_column_scale, work.d_value_scale,
                   gradients.log_lambda, stream);
  KrrFactorsBackward(views.r, views.lrr, scalars.scale, scalars.upper_scale,
                     kept.column_scale, work.d_column_scale, work.d_value_scale,
                     d_r, d_views.lrr, gradients.scale, gradients.lower,
                     gradients.upper_scale, stream);
  if (options_.share) AddHeads(d_r, d_views.k, stream);
  if (!context.rotary_table.empty()) {
    RotaryBackward(context.rotary_table, 0, d_views.q, stream);
    RotaryBackward(context.rotary_table, 0, d_views.k, stream);
    if (!options_.share) {
      RotaryBackward(context.rotary_table, 0, d_views.r, stream);
    }
  }
}

double CubitMixer::ForwardFlops(const MixerShape& shape) const {
  // The solve costs what the attention does.
  return 2 * CausalAttentionFlops(shape);
}

MixerHealth CubitMixer::Health(const MixerContext& context, ConstTensor columns,
                               const MixerSaved& saved, Tensor result) const {
  const auto& kept = static_cast<const CubitSaved&>(saved);
  const auto views = Split<ConstHeadTensor>(columns);
  KrrHealth(
      views.r, views.v, kept.column_scale, kept.value_scale,
      Named(context.scalars).log_lambda,
      HeadsOf(ConstTensor(kept.solution), 0, views.q.num_heads, head_dim_),
      kept.lse_kernel, result, *context.stream);
  float values[3];
  CopyToHost(values, result.raw(), sizeof(values), *context.stream);
  context.stream->Synchronize();
  return {values[0], values[1], values[2]};
}

std::unique_ptr<MixerCache> CubitMixer::AllocateCache(const MixerShape& shape,
                                                      Arena& arena) const {
  auto cache = std::make_unique<CubitCache>();
  if (!options_.share) {
    cache->k = arena.Allocate(DType::kFloat32, shape.rows());
  }
  cache->r = arena.Allocate(DType::kFloat32, shape.rows());
  cache->solution = arena.Allocate(DType::kFloat32, shape.rows());
  cache->column_scale = arena.Allocate(DType::kFloat32, shape.per_token());
  const Shape one = {shape.batch, shape.num_heads, 1};
  cache->new_column_scale = arena.Allocate(DType::kFloat32, one);
  cache->new_value_scale = arena.Allocate(DType::kFloat32, one);
  return cache;
}

void CubitMixer::FillCache(ConstTensor columns, const MixerSaved& saved,
                           MixerCache* cache, Stream& stream) const {
  const auto& kept = static_cast<const CubitSaved&>(saved);
  auto& state = *static_cast<CubitCache*>(cache);
  const auto views = Split<ConstHeadTensor>(columns);
  const int64_t heads = views.q.num_heads;
  const int64_t rows = columns.dim(1);
  const auto first_rows = [&](const Tensor& tensor) {
    return SliceSequence(HeadsOf(tensor, 0, heads, head_dim_), 0, rows);
  };
  if (!options_.share) CopyHeads(views.k, first_rows(state.k), stream);
  CopyHeads(views.r, first_rows(state.r), stream);
  CopyHeads(HeadsOf(ConstTensor(kept.solution), 0, heads, head_dim_),
            first_rows(state.solution), stream);
  CopyHeads(ScalarsOf(ConstTensor(kept.column_scale)),
            SliceSequence(ScalarsOf(state.column_scale), 0, rows), stream);
}

void CubitMixer::Decode(const MixerContext& context, int64_t position,
                        Tensor columns, MixerCache* cache, Tensor out) const {
  auto& state = *static_cast<CubitCache*>(cache);
  const auto views = Split<HeadTensor>(columns);
  const auto scalars = Named(context.scalars);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  Rotate(context, position, views);
  KrrFactorsForward(views.r, views.lrr, scalars.scale, scalars.lower,
                    scalars.upper_scale, state.new_column_scale,
                    state.new_value_scale, stream);
  const HeadTensor r = HeadsOf(state.r, 0, heads, head_dim_);
  const HeadTensor x = HeadsOf(state.solution, 0, heads, head_dim_);
  const HeadTensor k =
      options_.share ? r : HeadsOf(state.k, 0, heads, head_dim_);
  const HeadTensor column_scale = ScalarsOf(state.column_scale);
  CopyHeads(views.r, SliceSequence(r, position, 1), stream);
  if (!options_.share) {
    CopyHeads(views.k, SliceSequence(k, position, 1), stream);
  }
  CopyHeads(ScalarsOf(state.new_column_scale),
            SliceSequence(column_scale, position, 1), stream);
  KrrDecode(r, column_scale, views.v, ScalarsOf(state.new_value_scale),
            scalars.log_lambda, position, x, stream);
  AttentionDecode(views.q, k, x, attention_scale_, position,
                  HeadsOf(out, 0, heads, head_dim_), stream);
}

}  // namespace cubit
