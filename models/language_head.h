// SPDX-License-Identifier: Apache-2.0
//
// Vocabulary logits and the loss. Rows are taken in chunks, each through
// product, loss and gradient before the next, so that logits of all rows never
// exist at once; while training, the gradient is made in the same pass.

#ifndef CUBIT_MODELS_LANGUAGE_HEAD_H_
#define CUBIT_MODELS_LANGUAGE_HEAD_H_

#include <string>

#include "models/layer_context.h"
#include "models/model_config.h"
#include "parallel/parameter.h"
#include "runtime/memory.h"

namespace cubit {

struct LanguageHeadScratch {
  Tensor logits;  // [rows of a chunk, num_logits()]
};

class LanguageHead {
 public:
  // With `tied` the weight is that parameter, else one of its own.
  LanguageHead(ParameterStore* store, const std::string& name,
               const ModelConfig& config, Parameter* tied);

  LanguageHeadScratch AllocateScratch(int64_t rows, Arena& arena) const;

  // losses[n] = cross-entropy of row n, 0 where targets[n] is ignored.
  //   x [N, D], targets [N] int32, losses [N].
  void Loss(const LayerContext& context, ConstTensor x, ConstTensor targets,
            const LanguageHeadScratch& scratch, Tensor losses) const;

  // The same, and the gradient of grad_scale times the sum of the losses (with
  // z-loss): d_x [N, D] is written, the weight's gradient accumulated.
  void LossAndGradient(const LayerContext& context, ConstTensor x,
                       ConstTensor targets, float grad_scale,
                       const LanguageHeadScratch& scratch, Tensor losses,
                       Tensor d_x) const;

  // Columns that logits have: the ids that exist, up to a multiple of 64. Rows
  // of the weight beyond are padding that no product reads.
  int64_t num_logits() const { return num_logits_; }
  const Parameter& weight() const { return *weight_; }

  // logits [N, num_logits()].
  void Logits(const LayerContext& context, ConstTensor x, Tensor logits) const;

 private:
  // The rows of the weight that take part, [num_logits(), D].
  Tensor Value() const { return weight_->compute.Slice(0, num_logits_); }
  Tensor Gradient() const { return weight_->gradient.Slice(0, num_logits_); }

  Parameter* weight_;  // [V, D]
  int64_t num_logits_;
  int64_t valid_vocab_;
  DType dtype_;
  int64_t chunk_bytes_;
  float z_loss_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_LANGUAGE_HEAD_H_
