// SPDX-License-Identifier: Apache-2.0
//
// Which part of a model a rank holds, and how many rows it sees of a
// micro-batch. Plain values: who talks to whom is in layer_context.h.
//
//   tp  heads, columns of the MLP, vocabulary. Rows between the branches
//   (norms,
//       residuals) are cut into tp_size equal runs of the B * Tl rows
//       (Korthikanti et al., "Reducing activation recomputation in large
//       transformer models", arXiv:2205.05198).
//   cp  the sequence (parallel/sequence_layout.h): Tl = T / cp_size.
//   pp  layers: a rank holds chunks of consecutive layers.

#ifndef CUBIT_MODELS_MODEL_SHARD_H_
#define CUBIT_MODELS_MODEL_SHARD_H_

#include <cstdint>
#include <vector>

#include "parallel/sequence_layout.h"
#include "parallel/shard_spec.h"
#include "runtime/check.h"
#include "runtime/tensor.h"

namespace cubit {

// How a mixer works on sequences that are spread over cp.
enum class CpMethod {
  // The mixer's own form on shards: the wavefront solve, ring attention.
  kSharded,
  // All-to-all: the full sequence for H / tp / cp heads.
  kUlysses
};

// Layers [begin, begin + count) of the model.
struct LayerRange {
  int64_t begin = 0;
  int64_t count = 0;
};

struct ModelShard {
  int tp_rank = 0;
  int tp_size = 1;
  int cp_rank = 0;
  int cp_size = 1;
  CpMethod cp_method = CpMethod::kSharded;
  // The rank's pipeline chunks in the order of layers; empty: one chunk with
  // all layers, embedding and head.
  std::vector<LayerRange> chunks;
  bool embedding = true;  // in the first chunk
  bool head = true;       // in the last chunk

  // Whether mixers see sequence shards, and not whole sequences.
  bool shards_sequence() const {
    return cp_size > 1 && cp_method == CpMethod::kSharded;
  }
  // Part of a dim that tp cuts. CHECK: it divides.
  int64_t Local(int64_t extent) const {
    CUBIT_CHECK_EQ(extent % tp_size, 0);
    return extent / tp_size;
  }
  // Rows of B sequences of T tokens on this rank's cp shard, N, and those that
  // lie between the branches, Nl.
  int64_t Rows(int64_t batch, int64_t seq_len) const {
    return batch * (seq_len / cp_size);
  }
  int64_t LocalRows(int64_t batch, int64_t seq_len) const {
    return Local(Rows(batch, seq_len));
  }
  // Of the documents' ids of B sequences of T tokens: [B, T], or on sequence
  // shards chunk by chunk, [chunks, B, Tc] (SequenceLayout::OrderByChunks).
  Shape SegmentsShape(int64_t batch, int64_t seq_len) const {
    if (!shards_sequence()) return {batch, seq_len};
    const SequenceLayout layout(seq_len, cp_size);
    return {layout.num_chunks(), batch, layout.chunk_len()};
  }
  // This rank's slice of `dim` of a parameter of `shape`.
  ShardSpec Slice(Shape shape, int dim) const {
    ShardSpec spec = ShardSpec::Whole(shape);
    spec.dim = dim;
    spec.count = Local(shape[dim]);
    spec.begin = tp_rank * spec.count;
    return spec;
  }
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MODEL_SHARD_H_
