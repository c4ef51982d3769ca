// SPDX-License-Identifier: Apache-2.0
//
// Losses at chosen positions of a batch of sequences, by the forward pass
// alone. Nothing is kept for a backward, so that all layers share the tensors
// of two blocks, and only the chosen positions go through the head: scoring 25
// tokens of every 100 never makes the logits of the other 75.

#ifndef CUBIT_MODELS_SEQUENCE_SCORER_H_
#define CUBIT_MODELS_SEQUENCE_SCORER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

#include "models/language_model.h"
#include "runtime/memory.h"

namespace cubit {

// B sequences of T tokens; shorter ones are filled up at their end, which no
// earlier position sees.
struct ScoringBatch {
  int64_t batch_size = 0;
  int64_t seq_len = 0;
  std::vector<int32_t> inputs;       // [B, T]
  std::vector<int32_t> segment_ids;  // [B, T], or empty: one document each
  // What is wanted: position b * T + t, and the id that follows it. A position
  // may be asked about several times.
  std::vector<int32_t> positions;  // [n]
  std::vector<int32_t> targets;    // [n]
};

class SequenceScorer {
 public:
  // `model` and `stream` must outlive the scorer.
  SequenceScorer(const LanguageModel* model, Stream* stream)
      : model_(model), stream_(stream) {}

  // losses[i] = -log p(targets[i] | the tokens up to positions[i]), in nats; 0
  // where the target is kIgnoredTarget. CHECK: sizes agree. Error: no memory
  // for a batch of this shape. The memory of a shape is kept for the next batch
  // of the same shape.
  absl::StatusOr<std::vector<float>> Score(const ScoringBatch& batch);

  // Device bytes that a batch of this shape takes.
  int64_t BytesFor(int64_t batch_size, int64_t seq_len) const;

 private:
  // Tensors of one shape.
  struct Workspace {
    Activations activations;  // blocks: two, used in turn
    ModelScratch scratch;     // the rotary table and the head's logits
    Tensor positions;         // [N] int32
    Tensor hidden;            // [N, D]: of the chosen positions
  };

  Workspace Lay(int64_t batch_size, int64_t seq_len, Arena& arena) const;
  absl::Status Reserve(int64_t batch_size, int64_t seq_len);
  // Hidden states of all positions, in activations.final_norm.y.
  void ForwardTrunk(const ScoringBatch& batch);
  // Losses of `count` positions from `begin`, at most N, into `losses`.
  void ScorePositions(const ScoringBatch& batch, size_t begin, size_t count,
                      float* losses);
  void Upload(const int32_t* ids, size_t count, const Tensor& tensor);

  const LanguageModel* model_;
  Stream* stream_;
  std::unique_ptr<Arena> arena_;
  Workspace workspace_;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_SEQUENCE_SCORER_H_
