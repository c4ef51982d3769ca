// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/softmax/softmax_mixer.h"

#include <cmath>

#include "ops/attention.h"
#include "ops/decode.h"
#include "ops/head_norm.h"
#include "ops/heads.h"
#include "ops/rotary.h"
#include "runtime/profile_range.h"

namespace cubit {
namespace {

constexpr int64_t kQuery = 0;
constexpr int64_t kKey = 1;
constexpr int64_t kValue = 2;

// Where the time goes.
constexpr char kNorm[] = "norm";
constexpr char kRotary[] = "rotary";
constexpr char kAttention[] = "attention";

}  // namespace

SoftmaxMixer::SoftmaxMixer(const SoftmaxOptions& options, int64_t head_dim)
    : options_(options),
      head_dim_(head_dim),
      attention_scale_(
          static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))) {}

std::vector<MixerProjection> SoftmaxMixer::projections() const {
  return {{"q_proj", head_dim_}, {"k_proj", head_dim_}, {"v_proj", head_dim_}};
}

std::vector<MixerScalar> SoftmaxMixer::scalars() const {
  if (!options_.qk_norm) return {};
  // With unit rows a gain of K gives logits sqrt(K) cos(q, k): what RMS
  // normalisation with weights of one gives.
  return {{"qk_gain", static_cast<double>(head_dim_)}};
}

template <typename View, typename Columns>
View SoftmaxMixer::Projection(const Columns& columns, int64_t index) const {
  const int64_t width = columns.dim(2) / (3 * head_dim_) * head_dim_;
  return HeadsOf(columns, index * width, width / head_dim_, head_dim_);
}

std::unique_ptr<MixerSaved> SoftmaxMixer::AllocateSaved(const MixerShape& shape,
                                                        Arena& arena) const {
  auto saved = std::make_unique<SoftmaxSaved>();
  saved->lse = arena.Allocate(DType::kFloat32, shape.per_token());
  if (options_.qk_norm) {
    saved->q_norm = arena.Allocate(DType::kFloat32, shape.per_token());
    saved->k_norm = arena.Allocate(DType::kFloat32, shape.per_token());
    saved->q_hat = arena.Allocate(shape.dtype, shape.rows());
    saved->k_hat = arena.Allocate(shape.dtype, shape.rows());
  }
  return saved;
}

std::unique_ptr<MixerScratch> SoftmaxMixer::AllocateScratch(
    const MixerShape& shape, Arena& arena) const {
  auto scratch = std::make_unique<SoftmaxScratch>();
  scratch->delta = arena.Allocate(DType::kFloat32, shape.per_token());
  return scratch;
}

// For softmax_sharded.cc.
template HeadTensor SoftmaxMixer::Projection(const Tensor&, int64_t) const;
template ConstHeadTensor SoftmaxMixer::Projection(const ConstTensor&,
                                                  int64_t) const;

void SoftmaxMixer::NormForward(const MixerContext& context, HeadTensor q,
                               HeadTensor k, SoftmaxSaved* kept) const {
  if (!options_.qk_norm) return;
  Stream& stream = *context.stream;
  const ProfileRange range(kNorm, stream);
  HeadNormForward(context.scalars[0], q, kept->q_norm, stream);
  HeadNormForward(ConstTensor(), k, kept->k_norm, stream);
  CopyHeads(q, HeadsOf(kept->q_hat, 0, q.num_heads, head_dim_), stream);
  CopyHeads(k, HeadsOf(kept->k_hat, 0, k.num_heads, head_dim_), stream);
}

void SoftmaxMixer::NormBackward(const MixerContext& context,
                                const SoftmaxSaved& kept, HeadTensor d_q,
                                HeadTensor d_k,
                                const std::vector<Tensor>& d_scalars) const {
  if (!options_.qk_norm) return;
  Stream& stream = *context.stream;
  const ProfileRange range(kNorm, stream);
  HeadNormBackward(
      HeadsOf(ConstTensor(kept.q_hat), 0, d_q.num_heads, head_dim_),
      context.scalars[0], kept.q_norm, d_q, d_scalars[0], stream);
  HeadNormBackward(
      HeadsOf(ConstTensor(kept.k_hat), 0, d_k.num_heads, head_dim_),
      ConstTensor(), kept.k_norm, d_k, Tensor(), stream);
}

void SoftmaxMixer::Forward(const MixerContext& context, Tensor columns,
                           MixerSaved* saved, Tensor out) const {
  auto& kept = *static_cast<SoftmaxSaved*>(saved);
  const auto q = Projection<HeadTensor>(columns, kQuery);
  const auto k = Projection<HeadTensor>(columns, kKey);
  Stream& stream = *context.stream;
  NormForward(context, q, k, &kept);
  if (!context.rotary_table.empty()) {
    const ProfileRange range(kRotary, stream);
    RotaryForward(context.rotary_table, 0, {q, k}, stream);
  }
  const ProfileRange range(kAttention, stream);
  AttentionForward(q, k, Projection<HeadTensor>(columns, kValue),
                   attention_scale_, context.mask,
                   HeadsOf(out, 0, q.num_heads, head_dim_), kept.lse, stream);
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void SoftmaxMixer::Backward(const MixerContext& context, ConstTensor columns,
                            const MixerSaved& saved, ConstTensor out,
                            ConstTensor d_out, MixerScratch* scratch,
                            Tensor d_columns,
                            const std::vector<Tensor>& d_scalars,
                            Tensor /*health*/, Tensor d_column_sums) const {
  const auto& kept = static_cast<const SoftmaxSaved&>(saved);
  auto& work = *static_cast<SoftmaxScratch*>(scratch);
  const auto q = Projection<ConstHeadTensor>(columns, kQuery);
  const auto d_q = Projection<HeadTensor>(d_columns, kQuery);
  const auto d_k = Projection<HeadTensor>(d_columns, kKey);
  Stream& stream = *context.stream;
  {
    const ProfileRange range(kAttention, stream);
    AttentionBackward(q, Projection<ConstHeadTensor>(columns, kKey),
                      Projection<ConstHeadTensor>(columns, kValue),
                      HeadsOf(out, 0, q.num_heads, head_dim_), kept.lse,
                      HeadsOf(d_out, 0, q.num_heads, head_dim_),
                      attention_scale_, context.mask, AttentionAccumulate(),
                      d_q, d_k, Projection<HeadTensor>(d_columns, kValue),
                      work.delta, stream);
  }
  if (!context.rotary_table.empty()) {
    const ProfileRange range(kRotary, stream);
    RotaryBackward(context.rotary_table, 0, {d_q, d_k}, stream);
  }
  NormBackward(context, kept, d_q, d_k, d_scalars);
  AddHeadSums(HeadsOf(d_columns, 0, 1, d_columns.dim(2)), d_column_sums,
              stream);
}

double SoftmaxMixer::ForwardFlops(const MixerShape& shape) const {
  return CausalAttentionFlops(shape);
}

std::unique_ptr<MixerCache> SoftmaxMixer::AllocateCache(const MixerShape& shape,
                                                        Arena& arena) const {
  auto cache = std::make_unique<SoftmaxCache>();
  cache->k = arena.Allocate(shape.dtype, shape.rows());
  cache->v = arena.Allocate(shape.dtype, shape.rows());
  if (options_.qk_norm) {
    const Shape one = {shape.batch, shape.num_heads, 1};
    cache->new_q_norm = arena.Allocate(DType::kFloat32, one);
    cache->new_k_norm = arena.Allocate(DType::kFloat32, one);
  }
  return cache;
}

void SoftmaxMixer::FillCache(ConstTensor columns, const MixerSaved&,
                             MixerCache* cache, Stream& stream) const {
  auto& state = *static_cast<SoftmaxCache*>(cache);
  const auto k = Projection<ConstHeadTensor>(columns, kKey);
  const auto first_rows = [&](const Tensor& tensor) {
    return SliceSequence(HeadsOf(tensor, 0, k.num_heads, head_dim_), 0,
                         k.seq_len);
  };
  CopyHeads(k, first_rows(state.k), stream);
  CopyHeads(Projection<ConstHeadTensor>(columns, kValue), first_rows(state.v),
            stream);
}

void SoftmaxMixer::Decode(const MixerContext& context, int64_t position,
                          Tensor columns, MixerCache* cache, Tensor out) const {
  auto& state = *static_cast<SoftmaxCache*>(cache);
  const auto q = Projection<HeadTensor>(columns, kQuery);
  const auto new_k = Projection<HeadTensor>(columns, kKey);
  Stream& stream = *context.stream;
  if (options_.qk_norm) {
    HeadNormForward(context.scalars[0], q, state.new_q_norm, stream);
    HeadNormForward(ConstTensor(), new_k, state.new_k_norm, stream);
  }
  if (!context.rotary_table.empty()) {
    RotaryForward(context.rotary_table, position, {q, new_k}, stream);
  }
  const HeadTensor k = HeadsOf(state.k, 0, q.num_heads, head_dim_);
  const HeadTensor v = HeadsOf(state.v, 0, q.num_heads, head_dim_);
  CopyHeads(new_k, SliceSequence(k, position, 1), stream);
  CopyHeads(Projection<HeadTensor>(columns, kValue),
            SliceSequence(v, position, 1), stream);
  AttentionDecode(q, k, v, attention_scale_, position,
                  HeadsOf(out, 0, q.num_heads, head_dim_), stream);
}

}  // namespace cubit
