// SPDX-License-Identifier: Apache-2.0
//
// What mixers share that solve a triangular system for X and attend over X, on
// sequence shards: buffers, messages, and the attention, in the order of a
// wavefront (parallel/wavefront_schedule.h). A mixer adds its system.
//
//   forward   K and what the system needs of columns are gathered, a group at
//             a time before its first X, so that no group's X waits for the
//             keys of all; X goes round chunk by chunk as it is solved.
//   backward  the same and X are gathered again (they are not kept). The
//             attention's parts of dX are summed over ranks, the adjoint system
//             turns dX into Y, and the scores' gradients follow; parts of the
//             keys' gradients are summed at the end.

#ifndef CUBIT_MODELS_MIXERS_SHARDED_SOLVE_H_
#define CUBIT_MODELS_MIXERS_SHARDED_SOLVE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "models/mixers/sequence_groups.h"
#include "models/mixers/token_mixer.h"
#include "ops/chunked_attention.h"
#include "ops/chunked_solve.h"
#include "parallel/wavefront_runner.h"
#include "parallel/wavefront_schedule.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"

namespace cubit {

// What the forward of such a mixer leaves for the backward, on whole sequences
// too; local tensors.
struct SolveSaved : MixerSaved {
  Tensor lse_kernel;     // [B, H, T]
  Tensor lse_attention;  // [B, H, T]
  Tensor solution;       // [B, T, H * K]: X
  // X in fp32; absent where the solve takes the activations as they are.
  Tensor solution32;
  // The kernel's rows times X, [B, Tl, H * K] in fp32; on sequence shards
  // alone.
  Tensor kernel_x;
};

// Work space of one call; buffers are those of sequence_groups.h. Keys,
// solutions, and what else the system reads of all ranks, are of `solve_dtype`;
// sums and gradients are fp32 whatever the activations are.
struct ShardedSolveScratch : MixerScratch {
  ShardedSolveScratch(const MixerShape& shape, DType solve_dtype,
                      const SequenceLayout& layout, Arena& arena);

  SequenceGroups groups;
  WavefrontSchedule forward;
  WavefrontSchedule backward;

  // Rows of all ranks.
  Tensor k;
  Tensor x;
  Tensor d_k;  // parts, then sums of the rank's own blocks
  Tensor d_x;  // likewise
  Tensor y;    // d_x, where that is of the same dtype
  // Scalars of all ranks.
  Tensor lse_kernel;
  // Scalars of the rank's own blocks.
  Tensor lse_attention;
  Tensor delta_attention;
  Tensor delta_kernel;
  Tensor row_max_kernel, row_max_attention;
  Tensor row_sum_kernel, row_sum_attention;  // fp64
  // Local [B, Tl, H * K] in fp32; absent where activations are.
  Tensor weighted_attention, d_q;
};

// Tensors of the attention in a call, local views [B, Tl, H, K].
struct ShardedAttention {
  ConstHeadTensor q;
  float scale = 1;
  HeadTensor out;         // forward
  ConstHeadTensor d_out;  // backward
  HeadTensor d_q;         // backward: zero at first, accumulated
};

// One call. Derived classes say what the system's actions do.
class ShardedSolve : public WavefrontWork {
 public:
  // `saved` receives what the forward leaves; the backward reads it.
  ShardedSolve(const MixerContext& context, const SequenceShard& sequence,
               const ShardedAttention& attention, const SolveSaved& saved,
               ShardedSolveScratch* scratch);

  void Compute(const WavefrontAction& action) final;
  absl::Status Communicate(const WavefrontMessage& message,
                           Communicator& communicator, Stream& stream) final;

 protected:
  // Before anything is added to the rows' KernelSums.
  virtual void Begin(SequenceBlock rows) = 0;
  virtual void Solve(SequenceBlock rows) = 0;
  virtual void Update(SequenceBlock rows, SequenceBlock columns) = 0;
  // Also what follows from the block's own Y.
  virtual void AdjointSolve(SequenceBlock columns) = 0;
  virtual void AdjointUpdate(SequenceBlock rows, SequenceBlock columns) = 0;
  virtual void ScoreGradients(SequenceBlock rows, SequenceBlock columns) = 0;
  // Sums what the system added up for columns, besides d_k.
  virtual absl::Status ReduceKeyGradients(int group, Communicator& communicator,
                                          Stream& stream) = 0;

  // The pass over the local part. `gathered`: buffers of all ranks, of which
  // the rank's own blocks are there; an action that needs a message of the
  // schedule finds its group's whole.
  void RunForward(const std::vector<Tensor>& gathered);
  // From `out` of the forward. X and lse_kernel are put into their blocks, d_k
  // and d_x set to zero here. k and x are gathered of all groups, and then
  // `gathered`: a group's attention waits for its k and x alone, what needs a
  // message of the schedule finds all whole.
  void RunBackward(ConstHeadTensor out, const std::vector<Tensor>& gathered);

  RowSums KernelSums(SequenceBlock rows) const;
  // Rows of kernel_x.
  HeadTensor KernelX(SequenceBlock rows) const {
    return groups_.Part(kernel_x_, rows);
  }
  // What score gradients need of the rows.
  AdjointRows Adjoint(SequenceBlock rows) const;
  ConstTensor Segments(SequenceBlock block) const;
  Stream& stream() const { return stream_; }
  int cp_rank() const { return sequence_.cp_rank; }

  ShardedSolveScratch& scratch_;
  const SequenceGroups& groups_;

 private:
  void PostGather(const std::vector<Tensor>& buffers, int group);
  // [B, Tl, H, K] of a tensor of `saved`.
  HeadTensor Local(const Tensor& rows) const {
    return HeadsOf(rows, 0, attention_.q.num_heads, attention_.q.head_dim);
  }
  RowSums AttentionSums(SequenceBlock rows) const;
  void Attend(SequenceBlock rows, SequenceBlock columns);
  void AttendBackward(SequenceBlock rows, SequenceBlock columns);
  void Run(const WavefrontSchedule& schedule);

  const MixerContext& context_;
  const SequenceShard& sequence_;
  const ShardedAttention attention_;
  const SolveSaved& saved_;
  const HeadTensor kernel_x_;
  // Of attention_, or fp32 in its place.
  HeadTensor weighted_;
  HeadTensor d_q_;
  ConstHeadTensor forward_out_;  // backward
  Stream& stream_;
  CommunicationLane& lane_;
  std::vector<Tensor> gathered_;                    // of the forward
  std::vector<CommunicationLane::Ticket> gathers_;  // posted, in their order
  bool forward_ = true;
};

// `heads` of the activations' dtype, or, where these are not fp32, `in_float32`
// [B, Tl, H * K] in their place.
HeadTensor HeadsInFloat32(HeadTensor heads, const Tensor& in_float32);

// The lane of a sharded call. CHECK: there is one, and its group is the
// layout's.
CommunicationLane& LaneOf(const SequenceShard& sequence);

// Rotates the rows of a local view [B, Tl, H, K] at their positions in the
// sequence, and back; nothing without a table.
void RotateShard(const ConstTensor& table, const SequenceShard& sequence,
                 HeadTensor x, Stream& stream);
void RotateShardBackward(const ConstTensor& table,
                         const SequenceShard& sequence, HeadTensor d_x,
                         Stream& stream);

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXERS_SHARDED_SOLVE_H_
