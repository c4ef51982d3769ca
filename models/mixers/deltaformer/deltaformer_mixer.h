// SPDX-License-Identifier: Apache-2.0
//
// DeltaFormer: softmax attention over values from which what earlier tokens
// already say was taken away (arXiv:2505.19488). README.md beside this file has
// the formulas and the choices that the paper leaves open.

#ifndef CUBIT_MODELS_MIXERS_DELTAFORMER_DELTAFORMER_MIXER_H_
#define CUBIT_MODELS_MIXERS_DELTAFORMER_DELTAFORMER_MIXER_H_

#include <memory>
#include <vector>

#include "models/mixers/sharded_solve.h"
#include "models/mixers/token_mixer.h"
#include "models/model_config.h"

namespace cubit {

struct DeltaFormerSaved : SolveSaved {
  // What X is solved from in fp32; absent where the solve takes the activations
  // as they are, and on sequence shards, where it is scratch.
  Tensor w32, k32, v32;  // [B, T, H * K]
  Tensor beta32;         // [B, T, H]
};

struct DeltaFormerScratch : MixerScratch {
  Tensor d_solution;  // [B, T, H * K], then Y of the transposed solve
  Tensor d_k;         // [B, T, H * K]: the solve's part of d_k
  Tensor d_w;         // [B, T, H * K]: where w has no projection of its own
  Tensor delta;       // [B, H, T]
  // Gradients around a solve in fp32; likewise absent.
  Tensor d_w32, d_k32, d_v32, d_solution32;  // [B, T, H * K]
  Tensor d_beta32;                           // [B, T, H]
};

// On sequence shards; buffers as in sequence_groups.h.
struct DeltaFormerShardedScratch : ShardedSolveScratch {
  using ShardedSolveScratch::ShardedSolveScratch;

  // Rows of all ranks; w is k's where it is the key.
  Tensor w, beta;
  // Local [B, Tl, H * K]: where w has no projection of its own, of the
  // activations' dtype, and in fp32 where activations are not.
  Tensor d_w, d_w32;
};

struct DeltaFormerCache : MixerCache {
  Tensor k, solution;  // [B, T, H * K]
};

class DeltaFormerMixer : public TokenMixer, public SequenceShardedMixer {
 public:
  DeltaFormerMixer(const DeltaFormerOptions& options, KrrPrecision precision,
                   int64_t head_dim);

  const SequenceShardedMixer* sharded() const override { return this; }
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
                const std::vector<Tensor>& d_scalars, Tensor health,
                Tensor d_column_sums) const override;
  double ForwardFlops(const MixerShape& shape) const override;
  std::unique_ptr<MixerCache> AllocateCache(const MixerShape& shape,
                                            Arena& arena) const override;
  void FillCache(ConstTensor columns, const MixerSaved& saved,
                 MixerCache* cache, Stream& stream) const override;
  void Decode(const MixerContext& context, int64_t position, Tensor columns,
              MixerCache* cache, Tensor out) const override;

  // In deltaformer_sharded.cc.
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
  class ShardedCall;

  // What both forms of the mixer keep.
  std::unique_ptr<DeltaFormerSaved> AllocateKept(const MixerShape& shape,
                                                 Arena& arena) const;
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

  // x from w, k, v and beta, into kept.solution.
  void SolveForward(const MixerContext& context, const Views<HeadTensor>& views,
                    DeltaFormerSaved* kept) const;
  // From d_x in work.d_solution to the gradients of w, k, v and beta.
  void SolveBackward(const MixerContext& context,
                     const Views<ConstHeadTensor>& views,
                     const DeltaFormerSaved& kept,
                     const DeltaFormerScratch& work,
                     const Views<HeadTensor>& gradients) const;

  DeltaFormerOptions options_;
  KrrPrecision precision_;
  int64_t head_dim_;
  float scale_;  // of both softmaxes
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXERS_DELTAFORMER_DELTAFORMER_MIXER_H_
