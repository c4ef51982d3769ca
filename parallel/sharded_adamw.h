// SPDX-License-Identifier: Apache-2.0
//
// AdamW over a ParameterStore whose optimizer state is spread over the dp x cp
// group (ZeRO-1, Rajbhandari et al., arXiv:1910.02054): every rank holds the
// moments of its parts of the buckets (gradient_reducer.h), updates those
// weights, and gathers the others'. With one rank, or without sharding, a rank
// holds everything. Gradient clipping by the exact global norm, weight decay
// where a parameter asks for it. docs/decisions/0027-zero-1.md has the reasons.

#ifndef CUBIT_PARALLEL_SHARDED_ADAMW_H_
#define CUBIT_PARALLEL_SHARDED_ADAMW_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "parallel/checkpoint.h"
#include "parallel/gradient_reducer.h"
#include "parallel/mesh_communicators.h"
#include "parallel/parameter.h"
#include "runtime/communication_lane.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"

namespace cubit {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
  double grad_clip_norm = 1.0;  // 0: no clipping
};

// The moments of every parameter as "adamw.m.NAME" and "adamw.v.NAME", to be
// saved. Move-only.
struct AdamWState {
  AdamWState() = default;
  AdamWState(AdamWState&&) = default;
  AdamWState& operator=(AdamWState&&) = default;

  std::vector<CheckpointTensor> tensors;
  // What they view, where moments were gathered: flat, as the store's values.
  std::vector<float> m;
  std::vector<float> v;
};

class ShardedAdamW {
 public:
  // All must outlive the optimizer; `layout` is the reducer's.
  ShardedAdamW(const AdamWOptions& options, const BucketLayout* layout,
               ParameterStore* store, MeshCommunicators* mesh);

  // Bytes of both moments and what goes with them, on one rank.
  static int64_t StateBytes(const ParameterStore& store,
                            const BucketLayout& layout);
  absl::Status Allocate();

  // The norm of all gradients of the model, once each, over all ranks: those of
  // this rank's parts, summed over the world. After GradientReducer::Finish.
  // The host does not wait for the device.
  absl::Status ComputeGradientNorm(Stream& stream);
  // Its square, the same bits on every rank: [1] fp64.
  ConstTensor squared_norm() const { return squared_norm_; }

  // Update number `step` (1 for the first), with the gradients that
  // ComputeGradientNorm saw; nothing is changed anywhere if their norm is not
  // finite. Starts to gather the updated weights (and makes the copy that
  // products read) beside what follows on `stream`.
  void Update(int64_t step, double learning_rate, Stream& stream);
  // What follows on `stream` sees the new weights of parameters [first, last).
  void WaitForWeights(size_t first, size_t last, Stream& stream);
  // The same for all of them, and the first error of gathering.
  absl::Status WaitForAllWeights(Stream& stream);

  // What is to be saved, for SaveCheckpoint. A collective of the dp x cp group
  // where sharded: its first rank gets whole moments in host memory, through
  // the gradient buffer, whose contents are lost; the others own nothing.
  absl::StatusOr<AdamWState> GatherState(Stream& stream);
  // What is to be loaded, for LoadCheckpoint: on every rank the pieces that it
  // keeps.
  std::vector<CheckpointTensor> StateToLoad();

 private:
  // Elements of the flat buffers whose moments begin at `local` here.
  struct LocalPart {
    FlatRange range;
    int64_t local = 0;
  };

  void UpdatePart(const LocalPart& part, int64_t step, double learning_rate,
                  Stream& stream);
  void GatherWeights(size_t bucket, Stream& stream);
  absl::Status GatherMoment(const Tensor& moment, std::vector<float>* whole,
                            Stream& stream);
  // What this rank keeps of a moment of the parameter at `whole`.
  std::vector<CheckpointPiece> PiecesOf(const FlatRange& whole,
                                        const Tensor& moment);

  AdamWOptions options_;
  const BucketLayout* layout_;
  ParameterStore* store_;
  MeshCommunicators* mesh_;
  // By bucket where sharded, else one.
  std::vector<LocalPart> parts_;
  // What of `parts_` this rank adds to the norm.
  std::vector<FlatRange> counted_;
  std::vector<CommunicationLane::Ticket> gathers_;  // by bucket; empty: none

  Buffer buffer_;
  Tensor m_;  // [num_local] fp32
  Tensor v_;
  Tensor partial_sums_;  // [>= counted_] fp64
  Tensor squared_norm_;  // [1] fp64
  Tensor grad_scale_;    // [1]
  Tensor decay_;         // uint8, one for kAdamWGroup elements of the moments
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_SHARDED_ADAMW_H_
