// SPDX-License-Identifier: Apache-2.0
//
// Vocabulary logits and the loss. Rows are taken in chunks, each through
// product, loss and gradient before the next, so that logits of all rows never
// exist at once; while training, the gradient is made in the same pass. A tp
// rank has the logits of its run of the vocabulary and exchanges three numbers
// a row (ops/cross_entropy.h).

#ifndef CUBIT_MODELS_LANGUAGE_HEAD_H_
#define CUBIT_MODELS_LANGUAGE_HEAD_H_

#include <string>

#include "models/layer_context.h"
#include "models/model_config.h"
#include "models/model_shard.h"
#include "ops/vocabulary_slice.h"
#include "parallel/parameter.h"
#include "runtime/memory.h"

namespace cubit {

struct LanguageHeadScratch {
  Tensor logits;  // [rows of a chunk, num_logits()]
  // Of a chunk, this rank's and all ranks'; absent where tp is 1.
  Tensor statistics;      // [rows of a chunk, 3]
  Tensor all_statistics;  // [tp * rows of a chunk, 3]
};

class LanguageHead {
 public:
  // With `tied` the weight is that parameter (TokenEmbedding::weight), else one
  // of its own, NAME.weight [V, D]. CHECK: tp divides V.
  LanguageHead(ParameterStore* store, const std::string& name,
               const ModelConfig& config, const ModelShard& shard,
               Parameter* tied);

  // `rows` is N.
  LanguageHeadScratch AllocateScratch(int64_t rows, Arena& arena) const;

  // losses[n] = cross-entropy of row n, 0 where targets[n] is ignored.
  //   x [Nl, D]; targets [N] int32 and losses [N] of the rows of all tp ranks,
  //   the same on each.
  void Loss(const LayerContext& context, ConstTensor x, ConstTensor targets,
            const LanguageHeadScratch& scratch, Tensor losses) const;

  // The same, and the gradient of grad_scale times the sum of the losses (with
  // z-loss): d_x [Nl, D] is written, the weight's gradient accumulated.
  void LossAndGradient(const LayerContext& context, ConstTensor x,
                       ConstTensor targets, float grad_scale,
                       const LanguageHeadScratch& scratch, Tensor losses,
                       Tensor d_x) const;

  // Columns that logits have on this rank: the ids that exist, up to a multiple
  // of 64, at least one. Rows of the weight beyond are padding that no product
  // reads.
  int64_t num_logits() const { return num_logits_; }
  const Parameter& weight() const { return *weight_; }

  // This rank's columns of the logits, [n, num_logits()], of rows x [n, D] that
  // need not be gathered.
  void Logits(const LayerContext& context, ConstTensor x, Tensor logits) const;

 private:
  // The rows of the weight that take part, [num_logits(), D].
  Tensor Value() const { return weight_->compute.Slice(0, num_logits_); }
  Tensor Gradient() const { return weight_->gradient.Slice(0, num_logits_); }

  // Rows [begin, begin + logits.dim(0)) of a call: losses from their `logits`,
  // which with a gradient become that.
  struct Targets {
    ConstTensor ids;  // [N]
    Tensor losses;    // [N]
    bool gradient = false;
    float grad_scale = 0;
  };
  void LossOfChunk(const LayerContext& context, const Targets& targets,
                   int64_t begin, const LanguageHeadScratch& scratch,
                   Tensor logits) const;
  // The same over the slices of all tp ranks.
  void LossOverTp(const LayerContext& context, const Targets& targets,
                  int64_t begin, const LanguageHeadScratch& scratch,
                  Tensor logits) const;
  // All rows of x, the loss of every chunk, and with a gradient that of x in
  // `d_rows` [N, D] and of the weight.
  void Run(const LayerContext& context, ConstTensor x, const Targets& targets,
           const LanguageHeadScratch& scratch, Tensor d_rows) const;

  int tp_size_;
  Parameter* weight_;  // [V / tp, D] of [V, D]
  VocabularySlice slice_;
  int64_t num_logits_;
  int64_t most_logits_;  // of any tp rank
  DType dtype_;
  int64_t chunk_bytes_;
  float z_loss_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_LANGUAGE_HEAD_H_
