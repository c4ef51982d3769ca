// SPDX-License-Identifier: Apache-2.0
//
// A token mixer with its projections: one product in, the mixer, one product
// out. The mixer declares what it needs; this layer owns the parameters and
// splits the work: heads over tp, and the sequence over cp by one of two
// methods (CpMethod).

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
#include "models/model_shard.h"
#include "parallel/sequence_exchange.h"
#include "parallel/sequence_layout.h"
#include "runtime/memory.h"

namespace cubit {

// H is the number of this tp rank's heads, C their columns. Under kUlysses the
// mixer sees Hu = H / cp_size of them, with Cu columns, and T tokens.
struct MixerLayerSaved {
  // The fused projections as the mixer left them, rotated: [B, Tl, C], or [B,
  // T, Cu] under kUlysses.
  Tensor columns;
  Tensor out;        // [B, Tl, H * K]: the mixer's result
  Tensor heads_out;  // [B, T, Hu * K]: before the exchange; kUlysses alone
  std::shared_ptr<MixerSaved> mixer;  // by all copies of the struct
};

struct MixerLayerScratch {
  Tensor d_columns;  // [B, Tl, C]
  Tensor d_out;      // [B, Tl, H * K]
  std::unique_ptr<MixerScratch> mixer;
  // kUlysses alone.
  Tensor heads_d_columns;  // [B, T, Cu]
  Tensor heads_d_out;      // [B, T, Hu * K]
  SequenceExchangeBuffers exchange;
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
  // `mixer` must outlive the layer. CHECK: the number of heads is divided by
  // tp, and by tp * cp under kUlysses; under kSharded with several cp ranks the
  // mixer has a form on shards.
  MixerLayer(ParameterStore* store, const std::string& name,
             const ModelConfig& config, const ModelShard& shard,
             const TokenMixer* mixer);

  // `seq_len` is the whole T.
  MixerLayerSaved AllocateSaved(int64_t batch, int64_t seq_len,
                                Arena& arena) const;
  MixerLayerScratch AllocateScratch(int64_t batch, int64_t seq_len,
                                    Arena& arena) const;
  // y = residual + the branch; x, residual, y [Nl, D], which are N = B * Tl of
  // `saved` over tp. With several cp ranks it works in
  // ParallelContext::mixer_scratch.
  void Forward(const LayerContext& context, ConstTensor x, ConstTensor residual,
               MixerLayerSaved* saved, Tensor y) const;
  // d_x [Nl, D] is written. The sums of d_y's columns are left to whoever makes
  // it (Linear::BiasGradient): to OutBiasGradient, [D] or absent. `health` [3]
  // fp32, if not absent, receives the health of the solve (MixerHealth) of this
  // rank's heads and rows; only where the mixer has_health() (CHECK). The worst
  // of all ranks is that of one rank, but for the gain, a ratio of two maxima,
  // which it bounds.
  void Backward(const LayerContext& context, ConstTensor d_y, ConstTensor x,
                const MixerLayerSaved& saved, const MixerLayerScratch& scratch,
                Tensor d_x, Tensor health) const;
  Tensor OutBiasGradient() const { return out_.BiasGradient(); }

  // Decoding is for one rank (CHECK).
  MixerLayerCache AllocateCache(int64_t seq_len, Arena& arena) const;
  void FillCache(const LayerContext& context, const MixerLayerSaved& saved,
                 MixerLayerCache* cache) const;
  // One token of every text in `rows`, each at its own position: x, residual, y
  // [B, D]; `saved` has T = 1. The projections take all B rows at once, the
  // mixer one text at a time. Rows of y that `rows` does not name are
  // undefined.
  void Decode(const LayerContext& context, absl::Span<const DecodeRow> rows,
              ConstTensor x, ConstTensor residual, MixerLayerSaved* saved,
              Tensor y) const;

 private:
  // What the mixer sees of B sequences of T tokens.
  MixerShape ShapeOf(int64_t batch, int64_t seq_len) const;
  MixerContext ContextFor(const LayerContext& context) const;
  SequenceShard ShardFor(const LayerContext& context, int64_t local_len) const;
  bool exchanges_heads() const;
  // Of the columns, and of the results, of sequences of T tokens.
  SequenceExchange ColumnsExchange(int64_t seq_len) const;
  SequenceExchange OutExchange(int64_t seq_len) const;
  // Cu.
  int64_t ExchangedColumns() const;

  // x to saved->out, with several cp ranks.
  void ForwardOverCp(const LayerContext& context, ConstTensor x,
                     MixerLayerSaved* saved) const;
  // SequenceExchange's, with errors noted.
  void ToHeads(const LayerContext& context, const SequenceExchange& exchange,
               const MixerLayerScratch& scratch, ConstTensor local,
               Tensor whole) const;
  void ToSequence(const LayerContext& context, const SequenceExchange& exchange,
                  const MixerLayerScratch& scratch, ConstTensor whole,
                  Tensor local) const;
  // scratch.d_out to scratch.d_columns, under kSharded and under kUlysses.
  void BackwardSharded(const LayerContext& context,
                       const MixerLayerSaved& saved,
                       const MixerLayerScratch& scratch, Tensor health) const;
  void BackwardExchanged(const LayerContext& context,
                         const MixerLayerSaved& saved,
                         const MixerLayerScratch& scratch, Tensor health) const;
  // The part of a scalar [H] that is of the heads which the mixer sees.
  Tensor OfMixersHeads(const Tensor& scalar) const;
  std::vector<Tensor> ScalarGradients() const;
  // `tensor` [B, T, C] as [N, C].
  static Tensor Rows(const Tensor& tensor);

  ModelShard shard_;
  const TokenMixer* mixer_;
  DType dtype_;
  int64_t num_heads_;  // of this tp rank
  int64_t head_dim_;
  Linear in_;
  Linear out_;
  std::vector<Parameter*> scalars_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXER_LAYER_H_
