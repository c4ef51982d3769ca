// SPDX-License-Identifier: Apache-2.0
//
// A token mixer with its projections: one product in, the mixer, one product
// out. The mixer declares what it needs; this layer owns the parameters.

#ifndef CUBIT_MODELS_MIXER_LAYER_H_
#define CUBIT_MODELS_MIXER_LAYER_H_

#include <memory>
#include <string>
#include <vector>

#include "models/layer_context.h"
#include "models/linear.h"
#include "models/mixers/token_mixer.h"
#include "models/model_config.h"
#include "runtime/memory.h"

namespace cubit {

struct MixerLayerSaved {
  Tensor columns;  // [B, T, C]: the fused projections, rotated
  Tensor out;      // [B, T, H * K]: the mixer's result
  std::unique_ptr<MixerSaved> mixer;
};

struct MixerLayerScratch {
  Tensor d_columns;  // [B, T, C]
  Tensor d_out;      // [B, T, H * K]
  Tensor health;     // [3]
  std::unique_ptr<MixerScratch> mixer;
};

struct MixerLayerCache {
  std::unique_ptr<MixerCache> mixer;
};

class MixerLayer {
 public:
  // `mixer` must outlive the layer.
  MixerLayer(ParameterStore* store, const std::string& name,
             const ModelConfig& config, const TokenMixer* mixer);

  MixerLayerSaved AllocateSaved(int64_t batch, int64_t seq_len,
                                Arena& arena) const;
  MixerLayerScratch AllocateScratch(int64_t batch, int64_t seq_len,
                                    Arena& arena) const;
  // y = residual + the branch; x, residual, y [N, D] with N = B * T of `saved`.
  void Forward(const LayerContext& context, ConstTensor x, ConstTensor residual,
               MixerLayerSaved* saved, Tensor y) const;
  // d_x [N, D] is written.
  void Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                const MixerLayerSaved& saved, const MixerLayerScratch& scratch,
                Tensor d_x) const;

  MixerHealth Health(const LayerContext& context, const MixerLayerSaved& saved,
                     const MixerLayerScratch& scratch) const;

  MixerLayerCache AllocateCache(int64_t batch, int64_t seq_len,
                                Arena& arena) const;
  void FillCache(const LayerContext& context, const MixerLayerSaved& saved,
                 MixerLayerCache* cache) const;
  // One token: x, residual, y [B, D]; `saved` has T = 1.
  void Decode(const LayerContext& context, int64_t position, ConstTensor x,
              ConstTensor residual, MixerLayerSaved* saved,
              MixerLayerCache* cache, Tensor y) const;

 private:
  MixerShape ShapeOf(int64_t batch, int64_t seq_len) const;
  MixerContext ContextFor(const LayerContext& context) const;
  // `tensor` [B, T, C] as [N, C].
  static Tensor Rows(const Tensor& tensor);

  const TokenMixer* mixer_;
  int64_t num_heads_;
  int64_t head_dim_;
  Linear in_;
  Linear out_;
  std::vector<Parameter*> scalars_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXER_LAYER_H_
