// SPDX-License-Identifier: Apache-2.0

#include "models/language_head.h"

#include <algorithm>

#include "models/initialization.h"
#include "models/rows_over_tp.h"
#include "ops/cross_entropy.h"
#include "ops/matmul.h"
#include "runtime/profile_range.h"
#include "runtime/rounding.h"

namespace cubit {
namespace {

constexpr int64_t kMinChunkRows = 64;

constexpr char kHead[] = "head";
constexpr char kLoss[] = "loss";

// What matrix units like.
constexpr int64_t kLogitMultiple = 64;
constexpr int64_t kRowMultiple = 64;

// Of `extent` columns, those that `existing` ids need.
int64_t NumLogits(int64_t existing, int64_t extent) {
  return std::min(extent,
                  RoundUp(std::max<int64_t>(existing, 1), kLogitMultiple));
}

// Rows of each of the fewest chunks that fit, about the same number: a short
// last one would be products of their own, less efficient ones.
int64_t ChunkRows(int64_t rows, int64_t row_bytes, int64_t chunk_bytes) {
  const int64_t fitting = std::max(kMinChunkRows, chunk_bytes / row_bytes);
  const int64_t even = CeilDivide(rows, CeilDivide(rows, fitting));
  return std::min({rows, fitting, RoundUp(even, kRowMultiple)});
}

}  // namespace

LanguageHead::LanguageHead(ParameterStore* store, const std::string& name,
                           const ModelConfig& config, const ModelShard& shard,
                           Parameter* tied)
    : tp_size_(shard.tp_size),
      weight_(tied),
      dtype_(config.activation_dtype),
      chunk_bytes_(config.logits_chunk_bytes),
      z_loss_(static_cast<float>(config.z_loss)) {
  const ShardSpec spec =
      shard.Slice({config.vocab_size, config.hidden_size}, 0);
  if (weight_ == nullptr) {
    weight_ =
        store->Add(name + ".weight", spec,
                   Initializer::Normal(InputStddev(config)), /*decay=*/true);
  }
  slice_ = {spec.begin, config.valid_vocab};
  num_logits_ = NumLogits(slice_.Existing(spec.count), spec.count);
  // Not where rows are left that no product writes, or an embedding's gradient
  // is added.
  weight_->gradient_is_written = tied == nullptr && num_logits_ == spec.count;
  // The first slice has the most ids that exist.
  most_logits_ =
      NumLogits(std::min(config.valid_vocab, spec.count), spec.count);
}

LanguageHeadScratch LanguageHead::AllocateScratch(int64_t rows,
                                                  Arena& arena) const {
  // Every tp rank has the same chunks, whatever part of its ids is padding.
  const int64_t chunk =
      ChunkRows(rows, most_logits_ * SizeOf(dtype_), chunk_bytes_);
  LanguageHeadScratch scratch;
  scratch.logits = arena.Allocate(dtype_, {chunk, num_logits_});
  if (tp_size_ > 1) {
    scratch.statistics = arena.Allocate(DType::kFloat32, {chunk, 3});
    scratch.all_statistics =
        arena.Allocate(DType::kFloat32, {tp_size_ * chunk, 3});
  }
  return scratch;
}

void LanguageHead::Loss(const LayerContext& context, ConstTensor x,
                        ConstTensor targets, const LanguageHeadScratch& scratch,
                        Tensor losses) const {
  Targets wanted;
  wanted.ids = targets;
  wanted.losses = losses;
  Run(context, x, wanted, scratch, Tensor());
}

void LanguageHead::LossAndGradient(const LayerContext& context, ConstTensor x,
                                   ConstTensor targets, float grad_scale,
                                   const LanguageHeadScratch& scratch,
                                   Tensor losses, Tensor d_x) const {
  Targets wanted;
  wanted.ids = targets;
  wanted.losses = losses;
  wanted.gradient = true;
  wanted.grad_scale = grad_scale;
  Run(context, x, wanted, scratch, PartialRows(context, tp_size_, d_x));
  if (tp_size_ > 1) {
    SumRows(context, tp_size_, ConstTensor(), ConstTensor(), d_x);
  }
}

void LanguageHead::Run(const LayerContext& context, ConstTensor x,
                       const Targets& targets,
                       const LanguageHeadScratch& scratch,
                       Tensor d_rows) const {
  const ConstTensor all = GatherRows(context, tp_size_, x);
  CUBIT_CHECK_EQ(targets.ids.dim(0), all.dim(0));
  const int64_t chunk = scratch.logits.dim(0);
  for (int64_t begin = 0; begin < all.dim(0); begin += chunk) {
    const int64_t rows = std::min(chunk, all.dim(0) - begin);
    const Tensor logits = scratch.logits.Slice(0, rows);
    const ConstTensor x_rows = all.Slice(begin, rows);
    Logits(context, x_rows, logits);
    LossOfChunk(context, targets, begin, scratch, logits);
    if (!targets.gradient) continue;
    const ProfileRange range(kHead, *context.stream);
    const bool writes =
        weight_->gradient_is_written && context.first_backward && begin == 0;
    LinearBackwardWeight(logits, x_rows, /*accumulate=*/!writes, Gradient(),
                         Tensor(), *context.stream);
    LinearBackwardInput(logits, Value(), /*accumulate=*/false,
                        d_rows.Slice(begin, rows), *context.stream);
  }
}

void LanguageHead::LossOfChunk(const LayerContext& context,
                               const Targets& targets, int64_t begin,
                               const LanguageHeadScratch& scratch,
                               Tensor logits) const {
  const ProfileRange range(kLoss, *context.stream);
  if (tp_size_ > 1) {
    LossOverTp(context, targets, begin, scratch, logits);
    return;
  }
  const int64_t rows = logits.dim(0);
  CrossEntropy(logits, targets.ids.Slice(begin, rows), slice_.size, z_loss_,
               targets.grad_scale, targets.losses.Slice(begin, rows),
               targets.gradient ? logits : Tensor(), *context.stream);
}

void LanguageHead::LossOverTp(const LayerContext& context,
                              const Targets& targets, int64_t begin,
                              const LanguageHeadScratch& scratch,
                              Tensor logits) const {
  Stream& stream = *context.stream;
  const int64_t rows = logits.dim(0);
  const ConstTensor ids = targets.ids.Slice(begin, rows);
  const Tensor own = scratch.statistics.Slice(0, rows);
  const Tensor all = scratch.all_statistics.Slice(0, tp_size_ * rows);
  CrossEntropyStatistics(logits, ids, slice_, own, stream);
  context.parallel->Note(context.parallel->tp->AllGather(own, all, stream));
  const ConstTensor statistics = all.Reshape({tp_size_, rows, 3});
  CrossEntropyLosses(statistics, ids, slice_.size,
                     targets.losses.Slice(begin, rows), stream);
  if (!targets.gradient) return;
  CrossEntropyGradient(logits, ids, slice_, statistics, z_loss_,
                       targets.grad_scale, logits, stream);
}

void LanguageHead::Logits(const LayerContext& context, ConstTensor x,
                          Tensor logits) const {
  const ProfileRange range(kHead, *context.stream);
  LinearForward(x, Value(), ConstTensor(), ConstTensor(), logits,
                *context.stream);
}

}  // namespace cubit
