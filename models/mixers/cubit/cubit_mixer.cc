// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/cubit/cubit_mixer.h"

#include <cmath>

#include "absl/types/span.h"

#include "models/mixers/solve_dtype.h"
#include "ops/attention.h"
#include "ops/convert_heads.h"
#include "ops/decode.h"
#include "ops/heads.h"
#include "ops/krr.h"
#include "ops/rotary.h"
#include "runtime/profile_range.h"

namespace cubit {
namespace {

// Initial values of the paper's code.
constexpr double kInitialScale = 1.0;
constexpr double kInitialLower = 0.5;
constexpr double kInitialUpperScale = 1.5;

// Where the time goes.
constexpr char kRotary[] = "rotary";
constexpr char kSolve[] = "solve";
constexpr char kAttention[] = "attention";

}  // namespace

CubitMixer::CubitMixer(const CubitOptions& options, KrrPrecision precision,
                       int64_t head_dim)
    : options_(options),
      precision_(precision),
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

template <typename View, typename Part>
CubitMixer::Views<View> CubitMixer::ByProjection(size_t num_projections,
                                                 const Part& part) const {
  Views<View> views;
  views.q = part(0);
  views.k = part(1);
  views.v = part(2);
  views.r = options_.share ? views.k : part(3);
  if (options_.lrr) views.lrr = part(num_projections - 1);
  return views;
}

template <typename View, typename Columns>
CubitMixer::Views<View> CubitMixer::Split(const Columns& columns) const {
  const std::vector<MixerProjection> list = projections();
  const int64_t per_head = ProjectionColumn(list, list.size(), 1);
  const int64_t heads = columns.dim(2) / per_head;
  return ByProjection<View>(list.size(), [&](size_t index) {
    return HeadsOf(columns, ProjectionColumn(list, index, heads), heads,
                   list[index].width);
  });
}

CubitMixer::Views<Tensor> CubitMixer::SplitSums(const Tensor& d_column_sums,
                                                int64_t num_heads) const {
  if (d_column_sums.empty()) return {};
  const std::vector<MixerProjection> list = projections();
  return ByProjection<Tensor>(list.size(), [&](size_t index) {
    return d_column_sums.Slice(ProjectionColumn(list, index, num_heads),
                               num_heads * list[index].width);
  });
}

void CubitMixer::Rotate(const MixerContext& context, int64_t position,
                        const Views<HeadTensor>& views) const {
  const ConstTensor& table = context.rotary_table;
  if (table.empty()) return;
  const ProfileRange range(kRotary, *context.stream);
  const HeadTensor rotated[] = {views.q, views.k};
  RotaryForward(table, position,
                absl::MakeConstSpan(rotated, options_.share ? 1 : 2),
                *context.stream);
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

// For cubit_sharded.cc.
template CubitMixer::Views<HeadTensor> CubitMixer::Split(const Tensor&) const;
template CubitMixer::Views<ConstHeadTensor> CubitMixer::Split(
    const ConstTensor&) const;
template CubitMixer::Scalars<ConstTensor> CubitMixer::Named(
    const std::vector<ConstTensor>&) const;
template CubitMixer::Scalars<Tensor> CubitMixer::Named(
    const std::vector<Tensor>&) const;

std::unique_ptr<CubitSaved> CubitMixer::AllocateKept(const MixerShape& shape,
                                                     Arena& arena) const {
  auto saved = std::make_unique<CubitSaved>();
  for (Tensor* tensor : {&saved->column_scale, &saved->value_scale,
                         &saved->lse_kernel, &saved->lse_attention}) {
    *tensor = arena.Allocate(DType::kFloat32, shape.per_token());
  }
  saved->solution = arena.Allocate(shape.dtype, shape.rows());
  if (SolvesInFloat32(precision_, shape.dtype)) {
    saved->solution32 = arena.Allocate(DType::kFloat32, shape.rows());
  }
  return saved;
}

std::unique_ptr<MixerSaved> CubitMixer::AllocateSaved(const MixerShape& shape,
                                                      Arena& arena) const {
  std::unique_ptr<CubitSaved> saved = AllocateKept(shape, arena);
  if (SolvesInFloat32(precision_, shape.dtype)) {
    for (Tensor* tensor : {&saved->r32, &saved->v32}) {
      *tensor = arena.Allocate(DType::kFloat32, shape.rows());
    }
  }
  return saved;
}

std::unique_ptr<MixerScratch> CubitMixer::AllocateScratch(
    const MixerShape& shape, Arena& arena) const {
  auto scratch = std::make_unique<CubitScratch>();
  scratch->d_solution = arena.Allocate(shape.dtype, shape.rows());
  if (options_.share) {
    scratch->d_r = arena.Allocate(shape.dtype, shape.rows());
  }
  if (SolvesInFloat32(precision_, shape.dtype)) {
    for (Tensor* tensor :
         {&scratch->d_r32, &scratch->d_v32, &scratch->d_solution32}) {
      *tensor = arena.Allocate(DType::kFloat32, shape.rows());
    }
  }
  for (Tensor* tensor :
       {&scratch->d_scale_shares, &scratch->d_value_scale, &scratch->delta}) {
    *tensor = arena.Allocate(DType::kFloat32, shape.per_token());
  }
  return scratch;
}

void CubitMixer::Forward(const MixerContext& context, Tensor columns,
                         MixerSaved* saved, Tensor out) const {
  auto& kept = *static_cast<CubitSaved*>(saved);
  const auto views = Split<HeadTensor>(columns);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  Rotate(context, 0, views);
  SolveForward(context, views, &kept);
  const ProfileRange range(kAttention, stream);
  AttentionForward(
      views.q, views.k, HeadsOf(kept.solution, 0, heads, head_dim_),
      attention_scale_, context.mask, HeadsOf(out, 0, heads, head_dim_),
      kept.lse_attention, stream);
}

void CubitMixer::SolveForward(const MixerContext& context,
                              const Views<HeadTensor>& views,
                              CubitSaved* kept) const {
  const ProfileRange range(kSolve, *context.stream);
  const auto scalars = Named(context.scalars);
  Stream& stream = *context.stream;
  KrrRotaryFactorsForward(context.rotary_table, 0, views.r, views.lrr,
                          scalars.scale, scalars.lower, scalars.upper_scale,
                          kept->column_scale, kept->value_scale, stream);
  const int64_t heads = views.q.num_heads;
  const HeadTensor solution = HeadsOf(kept->solution, 0, heads, head_dim_);
  HeadTensor r = views.r;
  HeadTensor v = views.v;
  HeadTensor x = solution;
  const bool converted = !kept->r32.empty();
  if (converted) {
    r = HeadsOf(kept->r32, 0, heads, head_dim_);
    v = HeadsOf(kept->v32, 0, heads, head_dim_);
    x = HeadsOf(kept->solution32, 0, heads, head_dim_);
    ConvertHeads(views.r, r, stream);
    ConvertHeads(views.v, v, stream);
  }
  KrrSolveForward(r, v, kept->column_scale, kept->value_scale,
                  scalars.log_lambda, context.mask, SolveWith(precision_),
                  /*first_row=*/0, x, kept->lse_kernel, stream);
  if (converted) ConvertHeads(x, solution, stream);
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void CubitMixer::Backward(const MixerContext& context, ConstTensor columns,
                          const MixerSaved& saved, ConstTensor out,
                          ConstTensor d_out, MixerScratch* scratch,
                          Tensor d_columns,
                          const std::vector<Tensor>& d_scalars, Tensor health,
                          Tensor d_column_sums) const {
  const auto& kept = static_cast<const CubitSaved&>(saved);
  auto& work = *static_cast<CubitScratch*>(scratch);
  const auto views = Split<ConstHeadTensor>(columns);
  const auto d_views = Split<HeadTensor>(d_columns);
  const auto gradients = Named(d_scalars);
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  const Views<Tensor> sums = SplitSums(d_column_sums, heads);
  SolveGradients of_solve;
  of_solve.d_r =
      options_.share ? HeadsOf(work.d_r, 0, heads, head_dim_) : d_views.r;
  of_solve.d_v = d_views.v;
  // Where r is k, the sums of both gradients' rows go to one place too.
  of_solve.d_r_sums = sums.r;
  of_solve.d_v_sums = sums.v;
  of_solve.d_log_lambda = gradients.log_lambda;
  of_solve.health = health;

  {
    const ProfileRange range(kAttention, stream);
    AttentionBackward(views.q, views.k,
                      HeadsOf(ConstTensor(kept.solution), 0, heads, head_dim_),
                      HeadsOf(out, 0, heads, head_dim_), kept.lse_attention,
                      HeadsOf(d_out, 0, heads, head_dim_), attention_scale_,
                      context.mask, AttentionAccumulate(), d_views.q, d_views.k,
                      HeadsOf(work.d_solution, 0, heads, head_dim_), work.delta,
                      stream);
  }
  {
    const ProfileRange range(kRotary, stream);
    if (context.rotary_table.empty()) {
      AddHeadSums(d_views.q, sums.q, stream);
      AddHeadSums(d_views.k, sums.k, stream);
    } else {
      RotaryBackward(context.rotary_table, 0, {d_views.q, d_views.k},
                     {sums.q, sums.k}, stream);
    }
  }
  const ProfileRange range(kSolve, stream);
  SolveBackward(context, views, kept, work, of_solve);
  KrrScalarsBackward(views.lrr, Named(context.scalars).upper_scale,
                     work.d_scale_shares, work.d_value_scale, d_views.lrr,
                     gradients.scale, gradients.lower, gradients.upper_scale,
                     stream);
  // Both are those of the rows before the rotation.
  if (options_.share) AddHeads(of_solve.d_r, d_views.k, stream);
  AddHeadSums(d_views.lrr, sums.lrr, stream);
}

void CubitMixer::SolveBackward(const MixerContext& context,
                               const Views<ConstHeadTensor>& views,
                               const CubitSaved& kept, const CubitScratch& work,
                               const SolveGradients& gradients) const {
  Stream& stream = *context.stream;
  const int64_t heads = views.q.num_heads;
  const auto whole = [&](const auto& tensor) {
    return HeadsOf(tensor, 0, heads, head_dim_);
  };
  const bool converted = !kept.r32.empty();
  ConstHeadTensor r = views.r;
  ConstHeadTensor v = views.v;
  ConstHeadTensor x = whole(ConstTensor(kept.solution));
  HeadTensor d_x = whole(work.d_solution);
  HeadTensor d_r = gradients.d_r;
  HeadTensor d_v = gradients.d_v;
  if (converted) {
    r = whole(ConstTensor(kept.r32));
    v = whole(ConstTensor(kept.v32));
    x = whole(ConstTensor(kept.solution32));
    d_x = whole(work.d_solution32);
    d_r = whole(work.d_r32);
    d_v = whole(work.d_v32);
    ConvertHeads(whole(work.d_solution), d_x, stream);
  }
  const KrrBefore before = {/*normalised=*/true, context.rotary_table};
  KrrSolveBackward(r, v, kept.column_scale, kept.value_scale,
                   Named(context.scalars).log_lambda, context.mask,
                   SolveWith(precision_), before, x, kept.lse_kernel, d_x,
                   /*y=*/d_x, d_r, d_v, work.d_scale_shares, work.d_value_scale,
                   gradients.d_log_lambda, gradients.health, gradients.d_r_sums,
                   gradients.d_v_sums, stream);
  if (converted) {
    ConvertHeads(d_r, gradients.d_r, stream);
    ConvertHeads(d_v, gradients.d_v, stream);
  }
}

double CubitMixer::ForwardFlops(const MixerShape& shape) const {
  // The solve costs what the attention does.
  return 2 * CausalAttentionFlops(shape);
}

std::unique_ptr<MixerCache> CubitMixer::AllocateCache(const MixerShape& shape,
                                                      Arena& arena) const {
  auto cache = std::make_unique<CubitCache>();
  if (!options_.share) {
    cache->k = arena.Allocate(shape.dtype, shape.rows());
  }
  cache->r = arena.Allocate(shape.dtype, shape.rows());
  cache->solution = arena.Allocate(shape.dtype, shape.rows());
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
  KrrRotaryFactorsForward(context.rotary_table, position, views.r, views.lrr,
                          scalars.scale, scalars.lower, scalars.upper_scale,
                          state.new_column_scale, state.new_value_scale,
                          stream);
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
