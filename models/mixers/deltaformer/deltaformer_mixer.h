// SPDX-License-Identifier: Apache-2.0
//
// DeltaFormer: softmax attention over values from which what earlier tokens
// already say was taken away (arXiv:2505.19488). README.md beside this file has
// the formulas and the choices that the paper leaves open.

#ifndef CUBIT_MODELS_MIXERS_DELTAFORMER_DELTAFORMER_MIXER_H_
#define CUBIT_MODELS_MIXERS_DELTAFORMER_DELTAFORMER_MIXER_H_

#include <memory>
#include <vector>

#include "models/mixers/token_mixer.h"
#include "models/model_config.h"

namespace cubit {

struct DeltaFormerSaved : MixerSaved {
  Tensor lse_kernel;     // [B, H, T]
  Tensor lse_attention;  // [B, H, T]
  Tensor solution;       // [B, T, H * K]
};

struct DeltaFormerScratch : MixerScratch {
  Tensor d_solution;  // [B, T, H * K], then Y of the transposed solve
  Tensor d_k;         // [B, T, H * K]: the solve's part of d_k
  Tensor d_w;         // [B, T, H * K]: where w has no projection of its own
  Tensor delta;       // [B, H, T]
};

struct DeltaFormerCache : MixerCache {
  Tensor k, solution;  // [B, T, H * K]
};

class DeltaFormerMixer : public TokenMixer {
 public:
  DeltaFormerMixer(const DeltaFormerOptions& options, int64_t head_dim);

  std::vector<MixerProjection> projections() const override;
  std::vector<MixerScalar> scalars() const override { return {}; }
  std::unique_ptr<MixerSaved> AllocateSaved(const MixerShape& shape,
                                            Arena& arena) const override;
  std::unique_ptr<MixerScratch> AllocateScratch(const MixerShape& shape,
                                                Arena& arena) const override;
  void Forward(const MixerContext& context, Tensor columns, MixerSaved* saved,
               Tensor out) const override;
  void Backward(const MixerContext& context, ConstTensor columns,
                const MixerSaved& saved, ConstTensor out, ConstTensor d_out,
                MixerScratch* scratch, Tensor d_columns,
                const std::vector<Tensor>& d_scalars) const override;
  double ForwardFlops(const MixerShape& shape) const override;
  std::unique_ptr<MixerCache> AllocateCache(const MixerShape& shape,
                                            Arena& arena) const override;
  void FillCache(ConstTensor columns, const MixerSaved& saved,
                 MixerCache* cache, Stream& stream) const override;
  void Decode(const MixerContext& context, int64_t position, Tensor columns,
              MixerCache* cache, Tensor out) const override;

 private:
  bool owns_w() const { return options_.w == DeltaWeights::kOwn; }

  template <typename View>
  struct Views {
    View q, k, v, w;  // w is k or q where it has no projection of its own
    View beta;        // [B, T, H, 1]
  };
  template <typename View, typename Columns>
  Views<View> Split(const Columns& columns) const;
  // Rotates q, k and w at `position`, and squashes beta.
  void Prepare(const MixerContext& context, int64_t position,
               const Views<HeadTensor>& views) const;

  DeltaFormerOptions options_;
  int64_t head_dim_;
  float scale_;  // of both softmaxes
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXERS_DELTAFORMER_DELTAFORMER_MIXER_H_
