// SPDX-License-Identifier: Apache-2.0
//
// Causal softmax attention, the Transformer's mixer (arXiv:1706.03762), with
// optional QK-norm. README.md beside this file has the formulas.

#ifndef CUBIT_MODELS_MIXERS_SOFTMAX_SOFTMAX_MIXER_H_
#define CUBIT_MODELS_MIXERS_SOFTMAX_SOFTMAX_MIXER_H_

#include <memory>
#include <vector>

#include "models/mixers/sequence_groups.h"
#include "models/mixers/token_mixer.h"
#include "models/model_config.h"

namespace cubit {

struct SoftmaxSaved : MixerSaved {
  Tensor lse;             // [B, H, T]
  Tensor q_norm, k_norm;  // [B, H, T]: inverse norms; absent without QK-norm
  Tensor q_hat, k_hat;    // [B, T, H * K] before rotation; likewise
};

struct SoftmaxScratch : MixerScratch {
  Tensor delta;  // [B, H, T]
};

// On sequence shards; buffers as in sequence_groups.h.
struct SoftmaxShardedScratch : MixerScratch {
  explicit SoftmaxShardedScratch(const SequenceGroups& g) : groups(g) {}

  SequenceGroups groups;
  Tensor k, v;      // rows of all ranks, of the activations' dtype
  Tensor d_k, d_v;  // fp32: parts, then sums of the rank's own blocks
  // Scalars of the rank's own blocks; row_sum fp64.
  Tensor row_max, row_sum, lse, delta;
  // Local [B, Tl, H * K] in fp32; absent where activations are.
  Tensor weighted, d_q;
};

struct SoftmaxCache : MixerCache {
  Tensor k, v;                    // [B, T, H * K]
  Tensor new_q_norm, new_k_norm;  // [B, H, 1]
};

class SoftmaxMixer : public TokenMixer, public SequenceShardedMixer {
 public:
  SoftmaxMixer(const SoftmaxOptions& options, int64_t head_dim);

  const SequenceShardedMixer* sharded() const override { return this; }
  std::vector<MixerProjection> projections() const override;
  std::vector<MixerScalar> scalars() const override;
  std::unique_ptr<MixerSaved> AllocateSaved(const MixerShape& shape,
                                            Arena& arena) const override;
  std::unique_ptr<MixerScratch> AllocateScratch(const MixerShape& shape,
                                                Arena& arena) const override;
  void Forward(const MixerContext& context, Tensor columns, MixerSaved* saved,
               Tensor out) const override;
  void Backward(const MixerContext& context, ConstTensor columns,
                const MixerSaved& saved, ConstTensor out, ConstTensor d_out,
                MixerScratch* scratch, Tensor d_columns,
                const std::vector<Tensor>& d_scalars, Tensor health,
                Tensor d_column_sums) const override;
  double ForwardFlops(const MixerShape& shape) const override;
  std::unique_ptr<MixerCache> AllocateCache(const MixerShape& shape,
                                            Arena& arena) const override;
  void FillCache(ConstTensor columns, const MixerSaved& saved,
                 MixerCache* cache, Stream& stream) const override;
  void Decode(const MixerContext& context, int64_t position, Tensor columns,
              MixerCache* cache, Tensor out) const override;

  // In softmax_sharded.cc.
  std::unique_ptr<MixerSaved> AllocateShardedSaved(const MixerShape& shape,
                                                   const SequenceLayout& layout,
                                                   Arena& arena) const override;
  std::unique_ptr<MixerScratch> AllocateShardedScratch(
      const MixerShape& shape, const SequenceLayout& layout,
      Arena& arena) const override;
  void ForwardSharded(const MixerContext& context,
                      const SequenceShard& sequence, Tensor columns,
                      MixerSaved* saved, MixerScratch* scratch,
                      Tensor out) const override;
  void BackwardSharded(const MixerContext& context,
                       const SequenceShard& sequence, ConstTensor columns,
                       const MixerSaved& saved, ConstTensor out,
                       ConstTensor d_out, MixerScratch* scratch,
                       Tensor d_columns,
                       const std::vector<Tensor>& d_scalars) const override;

 private:
  template <typename View, typename Columns>
  View Projection(const Columns& columns, int64_t index) const;

  // QK-norm before the rotation, and after it in the backward.
  void NormForward(const MixerContext& context, HeadTensor q, HeadTensor k,
                   SoftmaxSaved* kept) const;
  void NormBackward(const MixerContext& context, const SoftmaxSaved& kept,
                    HeadTensor d_q, HeadTensor d_k,
                    const std::vector<Tensor>& d_scalars) const;

  SoftmaxOptions options_;
  int64_t head_dim_;
  float attention_scale_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXERS_SOFTMAX_SOFTMAX_MIXER_H_
