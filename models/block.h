// SPDX-License-Identifier: Apache-2.0
//
// One pre-norm block: x + mixer(norm(x)), then + mlp(norm(.)). Rows between the
// branches are those of this tp rank (model_shard.h); the branches gather them.

#ifndef CUBIT_MODELS_BLOCK_H_
#define CUBIT_MODELS_BLOCK_H_

#include <string>

#include "absl/types/span.h"

#include "models/layer_context.h"
#include "models/mixer_layer.h"
#include "models/mlp.h"
#include "models/model_config.h"
#include "models/model_shard.h"
#include "models/norm.h"
#include "models/recompute.h"
#include "runtime/memory.h"

namespace cubit {

struct BlockSaved {
  NormSaved mixer_norm;
  MixerLayerSaved mixer;
  Tensor residual;  // [Nl, D]: between the branches
  NormSaved mlp_norm;
  MlpSaved mlp;
  Tensor out;  // [Nl, D]: the next block's x
};

struct BlockScratch {
  Tensor d_branch;  // [Nl, D]
  MixerLayerScratch mixer;
  MlpScratch mlp;
};

class Block {
 public:
  Block(ParameterStore* store, const std::string& name,
        const ModelConfig& config, const ModelShard& shard,
        const TokenMixer* mixer);

  // `seq_len` is the whole T, here and below. `shared`, if any, is what another
  // block of the same micro-batch got: what `recompute` does not keep is then
  // that block's memory.
  BlockSaved AllocateSaved(int64_t batch, int64_t seq_len, Arena& arena,
                           Recompute recompute = Recompute::kNone,
                           const BlockSaved* shared = nullptr) const;
  // Shared by all blocks: nothing in it outlives a Backward.
  BlockScratch AllocateScratch(int64_t batch, int64_t seq_len,
                               Arena& arena) const;

  // x [Nl, D] to saved->out.
  void Forward(const LayerContext& context, ConstTensor x,
               BlockSaved* saved) const;
  // Computes anew what `recompute` does not keep, in `saved`; x as in Forward.
  // Afterwards Backward finds what Forward left, saved.out aside.
  void RecomputeForward(const LayerContext& context, ConstTensor x,
                        Recompute recompute, BlockSaved* saved) const;
  // `d` [Nl, D] holds the gradient of the block's result on entry and that of x
  // on return. The sums of its columns are gradients of biases, and are taken
  // by the pass that makes it: those on entry are already in OutBiasGradient,
  // [D] fp32 or absent; those on return are added to d_x_sums, the same of the
  // block before, or absent. `health` as in MixerLayer::Backward.
  void Backward(const LayerContext& context, ConstTensor x,
                const BlockSaved& saved, const BlockScratch& scratch, Tensor d,
                Tensor d_x_sums, Tensor health) const;
  Tensor OutBiasGradient() const { return mlp_.OutBiasGradient(); }

  const MixerLayer& mixer() const { return mixer_; }

  // One token of every text in `rows`: x [B, D] to saved->out; `saved` has
  // T = 1. Rows that `rows` does not name are undefined.
  void Decode(const LayerContext& context, absl::Span<const DecodeRow> rows,
              ConstTensor x, BlockSaved* saved) const;

 private:
  // The second branch: saved->residual to saved->out.
  void ForwardMlp(const LayerContext& context, BlockSaved* saved) const;

  ModelShard shard_;
  int64_t hidden_size_;
  DType dtype_;
  Norm mixer_norm_;
  MixerLayer mixer_;
  Norm mlp_norm_;
  Mlp mlp_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_BLOCK_H_
