// SPDX-License-Identifier: Apache-2.0
//
// The model: embedding, blocks, final norm, head; loss and gradients of one
// micro-batch. All tensors of a micro-batch are laid out once
// (AllocateActivations, AllocateScratch); nothing is allocated while it runs.

#ifndef CUBIT_MODELS_LANGUAGE_MODEL_H_
#define CUBIT_MODELS_LANGUAGE_MODEL_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "models/block.h"
#include "models/language_head.h"
#include "models/mixers/token_mixer.h"
#include "models/model_config.h"
#include "models/norm.h"
#include "parallel/parameter.h"
#include "runtime/memory.h"

namespace cubit {

// One micro-batch on the device: its tokens, and what the forward keeps.
struct Activations {
  Tensor inputs;       // [B, T] int32
  Tensor targets;      // [B, T] int32
  Tensor segment_ids;  // [B, T] int32; absent without document_mask
  Tensor embedded;     // [N, D]
  std::vector<BlockSaved> blocks;
  NormSaved final_norm;
  Tensor losses;  // [N]
};

// Work space that one micro-batch at a time uses.
struct ModelScratch {
  Tensor d;             // [N, D]: gradient of the residual stream
  Tensor d_final;       // [N, D]: gradient of the final norm's result
  Tensor rotary_table;  // [T, K]; absent without RoPE
  BlockScratch block;
  LanguageHeadScratch head;
};

class LanguageModel {
 public:
  // Declares all parameters (ParameterStore::Allocate is the caller's). Errors:
  // an unknown mixer.
  static absl::StatusOr<std::unique_ptr<LanguageModel>> Create(
      const ModelConfig& config);

  const ModelConfig& config() const { return config_; }
  ParameterStore& parameters() { return parameters_; }
  const ParameterStore& parameters() const { return parameters_; }

  Activations AllocateActivations(int64_t batch, int64_t seq_len,
                                  Arena& arena) const;
  ModelScratch AllocateScratch(int64_t batch, int64_t seq_len,
                               Arena& arena) const;
  // Fills what of the scratch is constant; once, before the first use.
  void InitializeScratch(ModelScratch* scratch, Stream& stream) const;

  // Losses of the micro-batch whose inputs and targets are in `activations`.
  void Forward(Activations* activations, ModelScratch* scratch,
               Stream& stream) const;

  // The same, and the gradients of grad_scale times the sum of the losses,
  // added to the parameters' gradients.
  void ForwardBackward(float grad_scale, Activations* activations,
                       ModelScratch* scratch, Stream& stream) const;

  // Worst health over the layers after a forward; zeros if the mixer solves no
  // system.
  MixerHealth Health(const Activations& activations,
                     const ModelScratch& scratch, Stream& stream) const;

  // Model FLOPs of forward and backward for `batch` sequences of `seq_len`: six
  // per weight of a product and token, three times the mixers' forward. What a
  // backward recomputes is not counted.
  double TrainFlops(int64_t batch, int64_t seq_len) const;

 private:
  friend class Decoder;
  friend class SequenceScorer;

  explicit LanguageModel(const ModelConfig& config,
                         std::unique_ptr<TokenMixer> mixer);

  LayerContext ContextFor(const Activations& activations,
                          const ModelScratch& scratch, Stream& stream) const;
  // Embedding, blocks and final norm.
  void ForwardTrunk(const LayerContext& context,
                    Activations* activations) const;
  // Input of block `layer`.
  static ConstTensor BlockInput(const Activations& activations, size_t layer);

  ModelConfig config_;
  std::unique_ptr<TokenMixer> mixer_;
  ParameterStore parameters_;
  Parameter* embedding_;  // [V, D]
  std::vector<Block> blocks_;
  std::unique_ptr<Norm> final_norm_;
  std::unique_ptr<LanguageHead> head_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_LANGUAGE_MODEL_H_
