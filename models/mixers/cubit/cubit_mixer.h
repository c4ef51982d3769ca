// SPDX-License-Identifier: Apache-2.0
//
// Cubit: softmax attention over the solution of a causal kernel ridge
// regression (arXiv:2605.06501). README.md beside this file has the formulas.

#ifndef CUBIT_MODELS_MIXERS_CUBIT_CUBIT_MIXER_H_
#define CUBIT_MODELS_MIXERS_CUBIT_CUBIT_MIXER_H_

#include <memory>
#include <vector>

#include "models/mixers/sharded_solve.h"
#include "models/mixers/token_mixer.h"
#include "models/model_config.h"

namespace cubit {

struct CubitSaved : SolveSaved {
  Tensor column_scale;  // [B, H, T]
  Tensor value_scale;   // [B, H, T]
  // What X is solved from, [B, T, H * K] in fp32; absent where the solve takes
  // the activations as they are, and on sequence shards, where it is scratch.
  Tensor r32, v32;
};

struct CubitScratch : MixerScratch {
  Tensor d_solution;      // [B, T, H * K], then Y of the transposed solve
  Tensor d_r;             // [B, T, H * K], only where r is shared with k
  Tensor d_scale_shares;  // [B, H, T]
  Tensor d_value_scale;   // [B, H, T]
  Tensor delta;           // [B, H, T]
  // Gradients around a solve in fp32, [B, T, H * K]; likewise absent.
  Tensor d_r32, d_v32, d_solution32;
};

// On sequence shards; blocks as in sequence_groups.h.
struct CubitShardedScratch : ShardedSolveScratch {
  using ShardedSolveScratch::ShardedSolveScratch;

  // Of all ranks.
  Tensor r;             // rows; k's where it is shared
  Tensor column_scale;  // scalars
  Tensor d_keys;        // rows: parts, then sums of the rank's own blocks
  // Scalars of the rank's own blocks.
  Tensor value_scale, d_column_scale, d_value_scale;
  Tensor row_sums;                                   // fp64
  Tensor local_d_column_scale, local_d_value_scale;  // [B, H, Tl]
  // Local [B, Tl, H * K]: where r is shared with k, of the activations' dtype,
  // and in fp32 where activations are not.
  Tensor d_r, d_r32;
};

struct CubitCache : MixerCache {
  Tensor k;                 // [B, T, H * K]; absent where r is shared with k
  Tensor r;                 // [B, T, H * K]
  Tensor solution;          // [B, T, H * K]
  Tensor column_scale;      // [B, H, T]
  Tensor new_column_scale;  // [B, H, 1]
  Tensor new_value_scale;   // [B, H, 1]
};

class CubitMixer : public TokenMixer, public SequenceShardedMixer {
 public:
  CubitMixer(const CubitOptions& options, KrrPrecision precision,
             int64_t head_dim);

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
  bool has_health() const override { return true; }
  std::unique_ptr<MixerCache> AllocateCache(const MixerShape& shape,
                                            Arena& arena) const override;
  void FillCache(ConstTensor columns, const MixerSaved& saved,
                 MixerCache* cache, Stream& stream) const override;
  void Decode(const MixerContext& context, int64_t position, Tensor columns,
              MixerCache* cache, Tensor out) const override;

  // In cubit_sharded.cc.
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
  void HealthSharded(const MixerContext& context, ConstTensor columns,
                     const MixerSaved& saved, Tensor result) const override;

 private:
  class ShardedCall;

  // What both forms of the mixer keep.
  std::unique_ptr<CubitSaved> AllocateKept(const MixerShape& shape,
                                           Arena& arena) const;

  // The per-head views of the fused projections.
  template <typename View>
  struct Views {
    View q, k, v, r;  // r is k where it is shared
    View lrr;         // [B, T, H, 1]; absent without LRR
  };
  // part(i): of the i-th of projections().
  template <typename View, typename Part>
  Views<View> ByProjection(size_t num_projections, const Part& part) const;
  template <typename View, typename Columns>
  Views<View> Split(const Columns& columns) const;
  // Likewise the parts of d_column_sums [C], all absent if it is.
  Views<Tensor> SplitSums(const Tensor& d_column_sums, int64_t num_heads) const;
  // Rotates q and k, which begin at `position`; r, and k where it is r, is
  // rotated in the pass over its factors.
  void Rotate(const MixerContext& context, int64_t position,
              const Views<HeadTensor>& views) const;

  // Rotates r; x from views.r and views.v, into kept.solution.
  void SolveForward(const MixerContext& context, const Views<HeadTensor>& views,
                    CubitSaved* kept) const;
  // What the solve's backward is to make.
  struct SolveGradients {
    HeadTensor d_r;  // through norm and rotation
    HeadTensor d_v;
    Tensor d_r_sums, d_v_sums;  // [H * K]; absent: not wanted
    Tensor d_log_lambda;
    Tensor health;  // as in Backward
  };
  // From d_x in work.d_solution.
  void SolveBackward(const MixerContext& context,
                     const Views<ConstHeadTensor>& views,
                     const CubitSaved& kept, const CubitScratch& work,
                     const SolveGradients& gradients) const;

  // Scalars in the order of scalars(); the last two are absent without LRR.
  template <typename T>
  struct Scalars {
    T log_lambda, scale, lower, upper_scale;
  };
  template <typename T>
  Scalars<T> Named(const std::vector<T>& scalars) const;

  CubitOptions options_;
  KrrPrecision precision_;
  int64_t head_dim_;
  float attention_scale_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXERS_CUBIT_CUBIT_MIXER_H_
