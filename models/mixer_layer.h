// SPDX-License-Identifier: Apache-2.0
//
// A token mixer with its projections: one product in, the mixer, one product
// out. The mixer declares what it needs; this layer owns the parameters.

#ifndef CUBIT_MODELS_MIXER_LAYER_H_
#define CUBIT_MODELS_MIXER_LAYER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"

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

// Of one text.
struct MixerLayerCache {
  std::unique_ptr<MixerCache> mixer;
};

// A text that a decoding step appends a token to.
struct DecodeRow {
  int64_t row = 0;       // of x and y
  int64_t position = 0;  // of the new token
  MixerLayerCache* cache = nullptr;
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
  // x, y [N, D] with N = B * T of `saved`.
  void Forward(const LayerContext& context, ConstTensor x,
               MixerLayerSaved* saved, Tensor y) const;
  // d_x [N, D] is written.
  void Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                const MixerLayerSaved& saved, const MixerLayerScratch& scratch,
                Tensor d_x) const;

  MixerHealth Health(const LayerContext& context, const MixerLayerSaved& saved,
                     const MixerLayerScratch& scratch) const;

  MixerLayerCache AllocateCache(int64_t seq_len, Arena& arena) const;
  void FillCache(const LayerContext& context, const MixerLayerSaved& saved,
                 MixerLayerCache* cache) const;
  // One token of every text in `rows`, each at its own position: x, y [B, D];
  // `saved` has T = 1. The projections take all B rows at once, the mixer one
  // text at a time. Rows of y that `rows` does not name are undefined.
  void Decode(const LayerContext& context, absl::Span<const DecodeRow> rows,
              ConstTensor x, MixerLayerSaved* saved, Tensor y) const;

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
