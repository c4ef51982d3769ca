// SPDX-License-Identifier: Apache-2.0
//
// The model, or the part of it that a rank holds (model_shard.h): embedding,
// blocks, final norm, head; loss and gradients of one micro-batch. All tensors
// of a micro-batch are laid out once (AllocateActivations, AllocateScratch);
// nothing is allocated while it runs.
//
// A pipeline stage holds one or more chunks of consecutive layers; the whole
// model is one chunk. Chunks run one at a time, in the order that a schedule
// says (parallel/pipeline_schedule.h).

#ifndef CUBIT_MODELS_LANGUAGE_MODEL_H_
#define CUBIT_MODELS_LANGUAGE_MODEL_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

#include "models/block.h"
#include "models/language_head.h"
#include "models/mixers/token_mixer.h"
#include "models/model_config.h"
#include "models/model_shard.h"
#include "models/norm.h"
#include "models/recompute.h"
#include "models/token_embedding.h"
#include "parallel/parameter.h"
#include "runtime/memory.h"

namespace cubit {

// One micro-batch in one chunk on the device: its tokens, and what the forward
// keeps.
struct Activations {
  Tensor inputs;   // [B, Tl] int32
  Tensor targets;  // [B, Tl] int32
  // int32 of ModelShard::SegmentsShape; absent without document_mask.
  Tensor segment_ids;
  Tensor embedded;  // [Nl, D]: the chunk's input
  Recompute recompute = Recompute::kNone;
  std::vector<BlockSaved> blocks;  // what is not kept is in common memory
  // Of the chunk with the head:
  NormSaved final_norm;
  Tensor losses;  // [N]
};

// Work space that one micro-batch at a time uses.
struct ModelScratch {
  Tensor d;             // [Nl, D]: gradient of the residual stream
  Tensor d_final;       // [Nl, D]: gradient of the final norm's result
  Tensor gathered;      // [N, D], for tp: ParallelContext
  Tensor partial;       // [N, D], for tp
  Tensor rotary_table;  // [T, K]; absent without RoPE
  BlockScratch block;
  LanguageHeadScratch head;
};

// Called when no more is going to be added to the gradients of the parameters
// [first, last), by position in the store.
using GradientsReady = absl::FunctionRef<void(size_t first, size_t last)>;

// Called before a forward reads the parameters [first, last) for the first
// time; those of a layer at once, tied weights that stand before them aside.
using ParametersNeeded = std::function<void(size_t first, size_t last)>;

// What one chunk is run with, besides its tensors.
struct ChunkContext {
  Stream* stream = nullptr;
  ParallelContext* parallel = nullptr;       // null: one rank
  const ParametersNeeded* needed = nullptr;  // null: nobody asks
  bool first_backward = false;               // LayerContext
};

class LanguageModel {
 public:
  // Declares all parameters of the shard (ParameterStore::Allocate is the
  // caller's). Errors: an unknown mixer.
  static absl::StatusOr<std::unique_ptr<LanguageModel>> Create(
      const ModelConfig& config, const ModelShard& shard = ModelShard());

  const ModelConfig& config() const { return config_; }
  const ModelShard& shard() const { return shard_; }
  int num_chunks() const { return static_cast<int>(chunks_.size()); }
  // Layers that this rank holds.
  int64_t num_local_layers() const {
    return static_cast<int64_t>(blocks_.size());
  }
  ParameterStore& parameters() { return parameters_; }
  const ParameterStore& parameters() const { return parameters_; }

  // Of a chunk, for B sequences of T tokens. With a `recompute` other than
  // kNone, only the chunk's backward finds in each block what its forward left.
  Activations AllocateActivations(int64_t batch, int64_t seq_len, Arena& arena,
                                  Recompute recompute = Recompute::kNone,
                                  int chunk = 0) const;
  ModelScratch AllocateScratch(int64_t batch, int64_t seq_len,
                               Arena& arena) const;
  // Fills what of the scratch is constant; once, before the first use.
  void InitializeScratch(ModelScratch* scratch, Stream& stream) const;

  // From the chunk's input to ChunkOutput: the tokens in `activations` where
  // the chunk has the embedding, else activations->embedded. The chunk with the
  // head ends with the final norm.
  void ForwardChunk(int chunk, const ChunkContext& context,
                    Activations* activations, ModelScratch* scratch) const;
  // What the chunk of `activations` gives the next as its input, [Nl, D].
  static Tensor ChunkOutput(const Activations& activations);
  // After ForwardChunk of the chunk with the head: losses of the micro-batch.
  void Losses(const ChunkContext& context, Activations* activations,
              ModelScratch* scratch) const;
  // After ForwardChunk: gradients of grad_scale times the sum of the losses,
  // added to the parameters' gradients. scratch->d holds the gradient of
  // ChunkOutput on entry, unless the chunk has the head, which makes the losses
  // too; and the gradient of the chunk's input on return. `health` [layers of
  // the rank, 3] fp32, if not absent, receives the MixerHealth of
  // each layer of the chunk; only where has_health(). `ready` is for the last
  // backward of a step.
  void BackwardChunk(int chunk, const ChunkContext& context, float grad_scale,
                     Activations* activations, ModelScratch* scratch,
                     Tensor health, GradientsReady ready) const;

  // The whole model on one rank: losses of the micro-batch whose inputs and
  // targets are in `activations`.
  void Forward(Activations* activations, ModelScratch* scratch,
               Stream& stream) const;
  // The same, and the gradients.
  void ForwardBackward(float grad_scale, Activations* activations,
                       ModelScratch* scratch, Stream& stream,
                       Tensor health = Tensor()) const;

  bool has_health() const { return mixer_->has_health(); }

  // Model FLOPs of forward and backward of this rank for `batch` sequences of
  // `seq_len`: six per weight of a product and token, three times the mixers'
  // forward. What a backward recomputes is not counted.
  double TrainFlops(int64_t batch, int64_t seq_len) const;

 private:
  friend class Decoder;
  friend class SequenceScorer;

  // Parameters [first, last) of the store.
  struct Range {
    size_t first = 0;
    size_t last = 0;
  };

  LanguageModel(const ModelConfig& config, const ModelShard& shard,
                std::unique_ptr<TokenMixer> mixer);

  LayerContext ContextFor(const Activations& activations,
                          const ModelScratch& scratch,
                          const ChunkContext& context) const;
  bool has_embedding(int chunk) const { return shard_.embedding && chunk == 0; }
  bool has_head(int chunk) const {
    return shard_.head && chunk + 1 == num_chunks();
  }
  // Input of block `index` of a chunk, or the output after the last.
  static Tensor BlockInput(const Activations& activations, size_t index);
  // What was declared since `first`.
  Range DeclaredSince(size_t first) const;
  // The bias gradient to which the columns of BlockInput's gradient are summed:
  // that of the block before, if the chunk has it.
  Tensor BiasGradientBefore(int chunk, size_t index) const;
  // Both add the sums of the columns of scratch->d to BiasGradientBefore: of
  // what the final norm makes, and of what another chunk made.
  void BackwardHead(int chunk, const LayerContext& context, float grad_scale,
                    Activations* activations, ModelScratch* scratch) const;
  void SumReceivedGradient(int chunk, const LayerContext& context,
                           const ModelScratch& scratch) const;
  void BackwardBlocks(int chunk, const LayerContext& context,
                      Activations* activations, ModelScratch* scratch,
                      Tensor health, GradientsReady ready) const;

  ModelConfig config_;
  ModelShard shard_;
  std::unique_ptr<TokenMixer> mixer_;
  ParameterStore parameters_;
  std::unique_ptr<TokenEmbedding> embedding_;  // also where the head is tied
  std::vector<Block> blocks_;                  // of all chunks
  std::vector<LayerRange> chunks_;             // in blocks_
  std::unique_ptr<Norm> final_norm_;
  std::unique_ptr<LanguageHead> head_;
  Range embedding_range_;
  std::vector<Range> block_ranges_;
  Range head_range_;  // with the final norm
};

}  // namespace cubit

#endif  // CUBIT_MODELS_LANGUAGE_MODEL_H_
