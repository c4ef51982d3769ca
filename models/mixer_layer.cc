// SPDX-License-Identifier: Apache-2.0

#include "models/mixer_layer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "models/initialization.h"
#include "runtime/profile_range.h"
#include "runtime/rounding.h"

namespace cubit {
namespace {

// Rows of the fused projections begin at multiples of 16 bytes in bf16 too, as
// matrix units and wide loads want it; per-token scalars would break that.
constexpr int64_t kColumnMultiple = 8;

// Where the time goes.
constexpr char kUlysses[] = "ulysses";
constexpr char kHealth[] = "health";

// Mixers find the number of heads by dividing, so padding is for heads that are
// wider than it.
int64_t ColumnMultiple(const TokenMixer& mixer) {
  const std::vector<MixerProjection> list = mixer.projections();
  return ProjectionColumn(list, list.size(), 1) >= kColumnMultiple
             ? kColumnMultiple
             : 1;
}

std::vector<LinearPart> InParts(const std::string& name,
                                const ModelConfig& config,
                                const TokenMixer& mixer) {
  std::vector<LinearPart> parts;
  for (const MixerProjection& projection : mixer.projections()) {
    parts.push_back({absl::StrCat(name, ".", projection.name),
                     config.num_heads * projection.width});
  }
  return parts;
}

}  // namespace

MixerLayer::MixerLayer(ParameterStore* store, const std::string& name,
                       const ModelConfig& config, const ModelShard& shard,
                       const TokenMixer* mixer)
    : shard_(shard),
      mixer_(mixer),
      dtype_(config.activation_dtype),
      num_heads_(shard.Local(config.num_heads)),
      head_dim_(config.head_dim()),
      in_(store, InParts(name, config, *mixer), config.hidden_size, config.bias,
          InputStddev(config), shard, LinearSplit::kColumns,
          ColumnMultiple(*mixer)),
      out_(store, {{name + ".o_proj", config.hidden_size}},
           config.num_heads * config.head_dim(), config.bias,
           OutputStddev(config), shard, LinearSplit::kRows) {
  for (const MixerScalar& scalar : mixer->scalars()) {
    scalars_.push_back(store->Add(absl::StrCat(name, ".", scalar.name),
                                  shard.Slice({config.num_heads}, 0),
                                  Initializer::Constant(scalar.initial),
                                  /*decay=*/false));
  }
  if (exchanges_heads()) CUBIT_CHECK_EQ(num_heads_ % shard.cp_size, 0);
  if (shard_.shards_sequence())
    CUBIT_CHECK(mixer->sharded() != nullptr) << name;
}

bool MixerLayer::exchanges_heads() const {
  return shard_.cp_size > 1 && shard_.cp_method == CpMethod::kUlysses;
}

MixerShape MixerLayer::ShapeOf(int64_t batch, int64_t seq_len) const {
  MixerShape shape = {batch, seq_len, num_heads_, head_dim_, dtype_};
  if (shard_.shards_sequence()) shape.seq_len /= shard_.cp_size;
  if (exchanges_heads()) shape.num_heads /= shard_.cp_size;
  return shape;
}

SequenceShard MixerLayer::ShardFor(const LayerContext& context,
                                   int64_t local_len) const {
  CUBIT_CHECK(context.parallel != nullptr);
  return {SequenceLayout(local_len * shard_.cp_size, shard_.cp_size),
          shard_.cp_rank, context.parallel};
}

SequenceExchange MixerLayer::ColumnsExchange(int64_t seq_len) const {
  std::vector<int64_t> widths;
  for (const MixerProjection& projection : mixer_->projections()) {
    widths.push_back(projection.width);
  }
  return SequenceExchange(SequenceLayout(seq_len, shard_.cp_size), num_heads_,
                          std::move(widths));
}

SequenceExchange MixerLayer::OutExchange(int64_t seq_len) const {
  return SequenceExchange(SequenceLayout(seq_len, shard_.cp_size), num_heads_,
                          {head_dim_});
}

int64_t MixerLayer::ExchangedColumns() const {
  const std::vector<MixerProjection> list = mixer_->projections();
  const int64_t columns =
      ProjectionColumn(list, list.size(), num_heads_ / shard_.cp_size);
  return RoundUp(columns, ColumnMultiple(*mixer_));
}

MixerContext MixerLayer::ContextFor(const LayerContext& context) const {
  MixerContext mixer_context;
  for (const Parameter* scalar : scalars_) {
    mixer_context.scalars.push_back(OfMixersHeads(scalar->value));
  }
  mixer_context.rotary_table = context.rotary_table;
  mixer_context.mask = context.mask;
  mixer_context.stream = context.stream;
  return mixer_context;
}

Tensor MixerLayer::OfMixersHeads(const Tensor& scalar) const {
  if (!exchanges_heads()) return scalar;
  const int64_t heads = num_heads_ / shard_.cp_size;
  return scalar.Slice(shard_.cp_rank * heads, heads);
}

std::vector<Tensor> MixerLayer::ScalarGradients() const {
  std::vector<Tensor> gradients;
  for (const Parameter* scalar : scalars_) {
    gradients.push_back(OfMixersHeads(scalar->gradient));
  }
  return gradients;
}

Tensor MixerLayer::Rows(const Tensor& tensor) {
  return tensor.Reshape({tensor.dim(0) * tensor.dim(1), tensor.dim(2)});
}

MixerLayerSaved MixerLayer::AllocateSaved(int64_t batch, int64_t seq_len,
                                          Arena& arena) const {
  const int64_t local_len = seq_len / shard_.cp_size;
  const MixerShape shape = ShapeOf(batch, seq_len);
  MixerLayerSaved saved;
  saved.columns = arena.Allocate(
      dtype_, {batch, shape.seq_len,
               exchanges_heads() ? ExchangedColumns() : in_.out_features()});
  saved.out =
      arena.Allocate(dtype_, {batch, local_len, num_heads_ * head_dim_});
  if (exchanges_heads()) {
    saved.heads_out = arena.Allocate(dtype_, shape.rows());
  }
  if (shard_.shards_sequence()) {
    saved.mixer = mixer_->sharded()->AllocateShardedSaved(
        shape, SequenceLayout(seq_len, shard_.cp_size), arena);
  } else {
    saved.mixer = mixer_->AllocateSaved(shape, arena);
  }
  return saved;
}

MixerLayerScratch MixerLayer::AllocateScratch(int64_t batch, int64_t seq_len,
                                              Arena& arena) const {
  const int64_t local_len = seq_len / shard_.cp_size;
  const MixerShape shape = ShapeOf(batch, seq_len);
  MixerLayerScratch scratch;
  scratch.d_columns =
      arena.Allocate(dtype_, {batch, local_len, in_.out_features()});
  scratch.d_out =
      arena.Allocate(dtype_, {batch, local_len, num_heads_ * head_dim_});
  if (shard_.shards_sequence()) {
    scratch.mixer = mixer_->sharded()->AllocateShardedScratch(
        shape, SequenceLayout(seq_len, shard_.cp_size), arena);
    return scratch;
  }
  scratch.mixer = mixer_->AllocateScratch(shape, arena);
  if (!exchanges_heads()) return scratch;
  scratch.heads_d_columns =
      arena.Allocate(dtype_, {batch, seq_len, ExchangedColumns()});
  scratch.heads_d_out = arena.Allocate(dtype_, shape.rows());
  const int64_t elements =
      std::max(ColumnsExchange(seq_len).BufferElements(batch),
               OutExchange(seq_len).BufferElements(batch));
  scratch.exchange.send = arena.Allocate(dtype_, {elements});
  scratch.exchange.receive = arena.Allocate(dtype_, {elements});
  return scratch;
}

void MixerLayer::Forward(const LayerContext& context, ConstTensor x,
                         ConstTensor residual, MixerLayerSaved* saved,
                         Tensor y) const {
  if (shard_.cp_size > 1) {
    ForwardOverCp(context, x, saved);
  } else {
    in_.Forward(context, x, ConstTensor(), Rows(saved->columns));
    mixer_->Forward(ContextFor(context), saved->columns, saved->mixer.get(),
                    saved->out);
  }
  out_.Forward(context, Rows(saved->out), residual, y);
}

void MixerLayer::ForwardOverCp(const LayerContext& context, ConstTensor x,
                               MixerLayerSaved* saved) const {
  CUBIT_CHECK(context.parallel != nullptr &&
              context.parallel->mixer_scratch != nullptr);
  const MixerLayerScratch& scratch = *context.parallel->mixer_scratch;
  if (shard_.shards_sequence()) {
    in_.Forward(context, x, ConstTensor(), Rows(saved->columns));
    mixer_->sharded()->ForwardSharded(
        ContextFor(context), ShardFor(context, saved->columns.dim(1)),
        saved->columns, saved->mixer.get(), scratch.mixer.get(), saved->out);
    return;
  }
  const int64_t seq_len = saved->columns.dim(1);
  // The projections of local rows are not needed again.
  in_.Forward(context, x, ConstTensor(), Rows(scratch.d_columns));
  ToHeads(context, ColumnsExchange(seq_len), scratch, scratch.d_columns,
          saved->columns);
  mixer_->Forward(ContextFor(context), saved->columns, saved->mixer.get(),
                  saved->heads_out);
  ToSequence(context, OutExchange(seq_len), scratch, saved->heads_out,
             saved->out);
}

void MixerLayer::ToHeads(const LayerContext& context,
                         const SequenceExchange& exchange,
                         const MixerLayerScratch& scratch, ConstTensor local,
                         Tensor whole) const {
  const ProfileRange range(kUlysses, *context.stream);
  context.parallel->Note(exchange.ToHeads(
      local, scratch.exchange, *context.parallel->cp, whole, *context.stream));
}

void MixerLayer::ToSequence(const LayerContext& context,
                            const SequenceExchange& exchange,
                            const MixerLayerScratch& scratch, ConstTensor whole,
                            Tensor local) const {
  const ProfileRange range(kUlysses, *context.stream);
  context.parallel->Note(exchange.ToSequence(
      whole, scratch.exchange, *context.parallel->cp, local, *context.stream));
}

void MixerLayer::Backward(const LayerContext& context, ConstTensor d_y,
                          ConstTensor x, const MixerLayerSaved& saved,
                          const MixerLayerScratch& scratch, Tensor d_x,
                          Tensor health) const {
  CUBIT_CHECK(health.empty() || mixer_->has_health());
  out_.BackwardWithoutBias(context, d_y, Rows(saved.out), Rows(scratch.d_out));
  if (exchanges_heads()) {
    BackwardExchanged(context, saved, scratch, health);
  } else if (shard_.shards_sequence()) {
    BackwardSharded(context, saved, scratch, health);
  } else {
    mixer_->Backward(ContextFor(context), saved.columns, *saved.mixer,
                     saved.out, scratch.d_out, scratch.mixer.get(),
                     scratch.d_columns, ScalarGradients(), health,
                     in_.BiasGradient());
    in_.BackwardWithoutBias(context, Rows(scratch.d_columns), x, d_x);
    return;
  }
  in_.Backward(context, Rows(scratch.d_columns), x, d_x);
}

void MixerLayer::BackwardSharded(const LayerContext& context,
                                 const MixerLayerSaved& saved,
                                 const MixerLayerScratch& scratch,
                                 Tensor health) const {
  const SequenceShardedMixer& mixer = *mixer_->sharded();
  const MixerContext mixer_context = ContextFor(context);
  if (!health.empty()) {
    const ProfileRange range(kHealth, *context.stream);
    mixer.HealthSharded(mixer_context, saved.columns, *saved.mixer, health);
  }
  mixer.BackwardSharded(mixer_context, ShardFor(context, saved.columns.dim(1)),
                        saved.columns, *saved.mixer, saved.out, scratch.d_out,
                        scratch.mixer.get(), scratch.d_columns,
                        ScalarGradients());
}

void MixerLayer::BackwardExchanged(const LayerContext& context,
                                   const MixerLayerSaved& saved,
                                   const MixerLayerScratch& scratch,
                                   Tensor health) const {
  const int64_t seq_len = saved.columns.dim(1);
  ToHeads(context, OutExchange(seq_len), scratch, scratch.d_out,
          scratch.heads_d_out);
  mixer_->Backward(ContextFor(context), saved.columns, *saved.mixer,
                   saved.heads_out, scratch.heads_d_out, scratch.mixer.get(),
                   scratch.heads_d_columns, ScalarGradients(), health,
                   /*d_column_sums=*/Tensor());
  ToSequence(context, ColumnsExchange(seq_len), scratch,
             scratch.heads_d_columns, scratch.d_columns);
}

MixerLayerCache MixerLayer::AllocateCache(int64_t seq_len, Arena& arena) const {
  CUBIT_CHECK_EQ(shard_.tp_size * shard_.cp_size, 1);
  return {mixer_->AllocateCache(ShapeOf(1, seq_len), arena)};
}

void MixerLayer::FillCache(const LayerContext& context,
                           const MixerLayerSaved& saved,
                           MixerLayerCache* cache) const {
  mixer_->FillCache(saved.columns, *saved.mixer, cache->mixer.get(),
                    *context.stream);
}

void MixerLayer::Decode(const LayerContext& context,
                        absl::Span<const DecodeRow> rows, ConstTensor x,
                        ConstTensor residual, MixerLayerSaved* saved,
                        Tensor y) const {
  const MixerContext mixer_context = ContextFor(context);
  in_.Forward(context, x, ConstTensor(), Rows(saved->columns));
  for (const DecodeRow& text : rows) {
    mixer_->Decode(mixer_context, text.position,
                   saved->columns.Slice(text.row, 1), text.cache->mixer.get(),
                   saved->out.Slice(text.row, 1));
  }
  out_.Forward(context, Rows(saved->out), residual, y);
}

}  // namespace cubit
