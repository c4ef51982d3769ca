// SPDX-License-Identifier: Apache-2.0
//
// A token mixer: what stands between the projections and the output projection
// of a block. It sees the full sequence and its local heads; MixerLayer owns
// the projections, splits them over ranks, initialises and saves them. A new
// mixer is a folder here and a line in registry.cc (docs/adding_a_mixer.md).

#ifndef CUBIT_MODELS_MIXERS_TOKEN_MIXER_H_
#define CUBIT_MODELS_MIXERS_TOKEN_MIXER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/layer_context.h"
#include "ops/attention.h"
#include "parallel/sequence_layout.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"

namespace cubit {

// A projection of the block's input that the mixer asks for: `width` columns
// per head. A width of 1 is a per-token scalar.
struct MixerProjection {
  std::string name;  // "q_proj"
  int64_t width = 0;
};

// A learnable number per head, not decayed.
struct MixerScalar {
  std::string name;  // "log_lambda"
  double initial = 0;
};

// Extents of one call: B, T, local heads, K.
struct MixerShape {
  int64_t batch = 0;
  int64_t seq_len = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  DType dtype = DType::kFloat32;  // of activations; statistics are fp32

  Shape per_token() const { return {batch, num_heads, seq_len}; }
  Shape rows() const { return {batch, seq_len, num_heads * head_dim}; }
};

// What a call needs besides its tensors.
struct MixerContext {
  std::vector<ConstTensor> scalars;  // [H] each, in the order of scalars()
  ConstTensor rotary_table;          // [>= T, K] or absent: no rotation
  AttentionMask mask;
  Stream* stream = nullptr;
};

// Where a mixer stands that works on sequence shards.
struct SequenceShard {
  SequenceLayout layout;
  int cp_rank = 0;
  ParallelContext* parallel = nullptr;  // groups, and where errors are noted
};

// Tensors that the forward leaves for the backward (one per layer and
// micro-batch in flight), and work space that layers share. A mixer derives its
// own typed struct from each.
struct MixerSaved {
  virtual ~MixerSaved() = default;
};
struct MixerScratch {
  virtual ~MixerScratch() = default;
};

// Decoding state of one layer: what a new token must see of the earlier ones.
struct MixerCache {
  virtual ~MixerCache() = default;
};

// Health of a solve (ops/krr.h, KrrHealth), in the order of its three numbers.
struct MixerHealth {
  double min_diagonal = 0;
  double max_gain = 0;
  double lambda_max = 0;
};

// Immutable once made; all state is in the caller's structs.
//
// `columns` [B, T, C] are the fused projections in the order of projections(),
// heads one after the other within each: projection p of head h begins at
// column H * (sum of widths before p) + h * width. Fewer than 8 columns of
// zeros may follow.
class SequenceShardedMixer;

class TokenMixer {
 public:
  virtual ~TokenMixer() = default;

  // This mixer's form on sequence shards; null if it has none.
  virtual const SequenceShardedMixer* sharded() const { return nullptr; }

  virtual std::vector<MixerProjection> projections() const = 0;
  virtual std::vector<MixerScalar> scalars() const = 0;

  virtual std::unique_ptr<MixerSaved> AllocateSaved(const MixerShape& shape,
                                                    Arena& arena) const = 0;
  virtual std::unique_ptr<MixerScratch> AllocateScratch(const MixerShape& shape,
                                                        Arena& arena) const = 0;

  // out [B, T, H * K] from `columns`, which is changed in place (rotated) and
  // must be kept as it is for the backward.
  virtual void Forward(const MixerContext& context, Tensor columns,
                       MixerSaved* saved, Tensor out) const = 0;

  // d_columns [B, T, C] is written in full but for padding; d_scalars [H] each,
  // in the order of scalars(), are accumulated. `health` [3] fp32, if not
  // absent, receives the health of the solve (MixerHealth); only where
  // has_health() (CHECK). To `d_column_sums` [C] fp32, if not absent, the sums
  // of d_columns over B and T are added: the gradient of the projections'
  // biases, which whoever writes a column can sum on the way.
  virtual void Backward(const MixerContext& context, ConstTensor columns,
                        const MixerSaved& saved, ConstTensor out,
                        ConstTensor d_out, MixerScratch* scratch,
                        Tensor d_columns, const std::vector<Tensor>& d_scalars,
                        Tensor health, Tensor d_column_sums) const = 0;

  // Model FLOPs of the forward core (products of visible pairs, a multiply-add
  // is two); the backward counts twice that.
  virtual double ForwardFlops(const MixerShape& shape) const = 0;

  // Whether it solves a system that may be ill-conditioned.
  virtual bool has_health() const { return false; }

  // Decoding. `shape.seq_len` is the largest length. Cached bytes per token and
  // head are what the mixer's README says.
  virtual std::unique_ptr<MixerCache> AllocateCache(const MixerShape& shape,
                                                    Arena& arena) const = 0;
  // Fills the cache from a Forward over the first columns.dim(1) tokens.
  virtual void FillCache(ConstTensor columns, const MixerSaved& saved,
                         MixerCache* cache, Stream& stream) const = 0;
  // One more token at `position`: columns [B, 1, C] (changed in place) to out
  // [B, 1, H * K]. Equal to the parallel form to rounding. The mask is causal
  // without documents.
  virtual void Decode(const MixerContext& context, int64_t position,
                      Tensor columns, MixerCache* cache, Tensor out) const = 0;
};

// Model FLOPs of one causal attention over all heads of `shape`: scores and
// weighted sums of T (T + 1) / 2 pairs.
double CausalAttentionFlops(const MixerShape& shape);

// What a mixer also is if it can work on a sequence that is spread over the cp
// ranks (parallel/sequence_layout.h); others get the full sequence for a part
// of their heads through an all-to-all (sequence_exchange.h). All cp ranks make
// the same calls in the same order. Results agree with TokenMixer's to
// rounding. context.mask.segment_ids is of the whole sequence, chunk by chunk:
// [chunks, B, Tc] (SequenceLayout::OrderByChunks).
class SequenceShardedMixer {
 public:
  virtual ~SequenceShardedMixer() = default;

  // `shape.seq_len` is the local one, Tl.
  virtual std::unique_ptr<MixerSaved> AllocateShardedSaved(
      const MixerShape& shape, const SequenceLayout& layout,
      Arena& arena) const = 0;
  virtual std::unique_ptr<MixerScratch> AllocateShardedScratch(
      const MixerShape& shape, const SequenceLayout& layout,
      Arena& arena) const = 0;

  // As TokenMixer::Forward and Backward; columns [B, Tl, C], out [B, Tl, H *
  // K]. The scratch serves both and nothing in it outlives a call. d_scalars
  // get this rank's rows' part.
  virtual void ForwardSharded(const MixerContext& context,
                              const SequenceShard& sequence, Tensor columns,
                              MixerSaved* saved, MixerScratch* scratch,
                              Tensor out) const = 0;
  virtual void BackwardSharded(const MixerContext& context,
                               const SequenceShard& sequence,
                               ConstTensor columns, const MixerSaved& saved,
                               ConstTensor out, ConstTensor d_out,
                               MixerScratch* scratch, Tensor d_columns,
                               const std::vector<Tensor>& d_scalars) const = 0;
  // Health of the solve of this rank's rows, from what ForwardSharded kept:
  // result [3] fp32 is written in stream order. Only where has_health()
  // (CHECK).
  virtual void HealthSharded(const MixerContext& context, ConstTensor columns,
                             const MixerSaved& saved, Tensor result) const;
};

// Column where projection `index` of `projections` begins, for H local heads;
// index == projections.size() gives the number of columns C.
int64_t ProjectionColumn(const std::vector<MixerProjection>& projections,
                         size_t index, int64_t num_heads);

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXERS_TOKEN_MIXER_H_
