// SPDX-License-Identifier: Apache-2.0
//
// AdamW over a ParameterStore whose optimizer state is spread over the dp x cp
// group (ZeRO-1, Rajbhandari et al., arXiv:1910.02054): every rank holds the
// moments of its parts of the buckets (gradient_reducer.h), updates those
// weights, and gathers the others'. With one rank, or zero_stage 0, a rank holds
// everything. Gradient clipping by the exact global norm, weight decay where a
// parameter asks for it.

#ifndef CUBIT_PARALLEL_SHARDED_ADAMW_H_
#define CUBIT_PARALLEL_SHARDED_ADAMW_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "parallel/checkpoint.h"
#include "parallel/gradient_reducer.h"
#include "parallel/mesh_communicators.h"
#include "parallel/parameter.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace cubit {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
  double grad_clip_norm = 1.0;  // 0: no clipping
};

class ShardedAdamW {
 public:
  // All must outlive the optimizer; `layout` is the reducer's.
  ShardedAdamW(const AdamWOptions& options, const BucketLayout* layout,
               ParameterStore* store, MeshCommunicators* mesh);

  // Bytes of both moments and what goes with them, on one rank.
  static int64_t StateBytes(const ParameterStore& store,
                            const BucketLayout& layout, int group_rank);
  absl::Status Allocate();

  // The norm of all gradients of the model, once each, over all ranks: those of
  // this rank's parts, summed over the world. After GradientReducer::Finish.
  // The host does not wait for the device.
  absl::Status ComputeGradientNorm(Stream& stream);
  // Its square, the same bits on every rank: [1] fp64.
  ConstTensor squared_norm() const;

  // Update number `step` (1 for the first); nothing is changed anywhere if the
  // norm is not finite. Starts to gather the updated weights (and the copy that
  // products read) beside what follows on `stream`.
  absl::Status Update(int64_t step, double learning_rate, Stream& stream);
  // What follows on `stream` sees the new weights of parameters [first, last).
  void WaitForWeights(size_t first, size_t last, Stream& stream);
  // The same for all of them, and the first error of gathering.
  absl::Status WaitForAllWeights(Stream& stream);

  // The moments of every parameter as "adamw.m.NAME" and "adamw.v.NAME", for
  // saving and loading on any layout (checkpoint.h).
  std::vector<CheckpointTensor> State();
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_SHARDED_ADAMW_H_
