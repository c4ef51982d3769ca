// SPDX-License-Identifier: Apache-2.0

#include "models/language_head.h"

#include <algorithm>

#include "models/initialization.h"
#include "ops/cross_entropy.h"
#include "ops/matmul.h"

namespace cubit {
namespace {

// Logits of a chunk: large enough for the products to run at full rate, small
// beside everything else.
constexpr int64_t kChunkBytes = 64 << 20;
constexpr int64_t kMinChunkRows = 64;

// What matrix units like.
constexpr int64_t kLogitMultiple = 64;

int64_t NumLogits(const ModelConfig& config) {
  const int64_t padded = (config.valid_vocab + kLogitMultiple - 1) /
                         kLogitMultiple * kLogitMultiple;
  return std::min(config.vocab_size, padded);
}

int64_t ChunkRows(int64_t rows, int64_t num_logits) {
  const int64_t fitting = kChunkBytes / (num_logits * SizeOf(DType::kFloat32));
  return std::min(rows, std::max(kMinChunkRows, fitting));
}

}  // namespace

LanguageHead::LanguageHead(ParameterStore* store, const std::string& name,
                           const ModelConfig& config, Parameter* tied)
    : weight_(tied),
      num_logits_(NumLogits(config)),
      valid_vocab_(config.valid_vocab),
      z_loss_(static_cast<float>(config.z_loss)) {
  if (weight_ == nullptr) {
    weight_ =
        store->Add(name + ".weight",
                   ShardSpec::Whole({config.vocab_size, config.hidden_size}),
                   Initializer::Normal(InputStddev(config)), /*decay=*/true);
  }
}

LanguageHeadScratch LanguageHead::AllocateScratch(int64_t rows,
                                                  Arena& arena) const {
  return {arena.Allocate(DType::kFloat32,
                         {ChunkRows(rows, num_logits_), num_logits_})};
}

void LanguageHead::Loss(const LayerContext& context, ConstTensor x,
                        ConstTensor targets, const LanguageHeadScratch& scratch,
                        Tensor losses) const {
  const int64_t chunk = scratch.logits.dim(0);
  for (int64_t begin = 0; begin < x.dim(0); begin += chunk) {
    const int64_t rows = std::min(chunk, x.dim(0) - begin);
    const Tensor logits = scratch.logits.Slice(0, rows);
    Logits(context, x.Slice(begin, rows), logits);
    CrossEntropy(logits, targets.Slice(begin, rows), valid_vocab_, z_loss_,
                 /*grad_scale=*/0, losses.Slice(begin, rows), Tensor(),
                 *context.stream);
  }
}

void LanguageHead::LossAndGradient(const LayerContext& context, ConstTensor x,
                                   ConstTensor targets, float grad_scale,
                                   const LanguageHeadScratch& scratch,
                                   Tensor losses, Tensor d_x) const {
  const int64_t chunk = scratch.logits.dim(0);
  for (int64_t begin = 0; begin < x.dim(0); begin += chunk) {
    const int64_t rows = std::min(chunk, x.dim(0) - begin);
    const Tensor logits = scratch.logits.Slice(0, rows);
    const ConstTensor x_rows = x.Slice(begin, rows);
    Logits(context, x_rows, logits);
    CrossEntropy(logits, targets.Slice(begin, rows), valid_vocab_, z_loss_,
                 grad_scale, losses.Slice(begin, rows), logits,
                 *context.stream);
    LinearBackwardWeight(logits, x_rows, Gradient(), Tensor(), *context.stream);
    LinearBackwardInput(logits, Value(), /*accumulate=*/false,
                        d_x.Slice(begin, rows), *context.stream);
  }
}

void LanguageHead::Logits(const LayerContext& context, ConstTensor x,
                          Tensor logits) const {
  LinearForward(x, Value(), ConstTensor(), ConstTensor(), logits,
                *context.stream);
}

}  // namespace cubit
