// SPDX-License-Identifier: Apache-2.0
//
// Sums the gradients of a step over the ranks: over dp and cp for all
// parameters, in buckets of adjacent elements that begin while the last
// backward still runs, then over tp and the pipeline's ends where a parameter
// asks for it (Parameter::sum_over_tp, sum_over_ends). With ZeRO-1 (Rajbhandari
// et al., arXiv:1910.02054) a bucket is reduce-scattered: rank r of the dp x cp
// group keeps part r of it; otherwise every rank gets all of it.
//
// tp and ends come last, on this rank's parts alone. Sums over different axes
// commute; after the reduce-scatter there is less to send by the size of the
// group, no bucket waits for another axis, and no stage waits in its backward
// for the other end of the pipeline. Ranks that differ in tp alone have the
// same parts, because their flat buffers are cut alike; a tied embedding has
// the same parts on both ends, because it has buckets of its own.

#ifndef CUBIT_PARALLEL_GRADIENT_REDUCER_H_
#define CUBIT_PARALLEL_GRADIENT_REDUCER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "parallel/mesh_communicators.h"
#include "parallel/parameter.h"
#include "runtime/communication_lane.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"

namespace cubit {

struct GradientReducerOptions {
  bool shard = true;  // ZeRO-1
  int64_t bucket_bytes = int64_t{64} << 20;
};

// Elements [begin, end) of the flat buffers.
struct FlatRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
};

// How the flat buffers are cut. Pure arithmetic on the store's declaration and
// the size of the group: the same on every rank of it, known before anything is
// allocated.
//
// Buckets have equal size and are cut without regard to parameters, so that no
// padding lies between them; a bucket is complete when every parameter that it
// touches is. Only a parameter with sum_over_ends begins a bucket, and ends
// one.
class BucketLayout {
 public:
  // What ParameterStore::AlignTo wants before a layout is made.
  static int64_t Alignment(int group_size,
                           const GradientReducerOptions& options);

  // CHECK: the store is aligned to Alignment, if anything is sharded.
  BucketLayout(const ParameterStore& store, int group_size,
               const GradientReducerOptions& options);

  // Whether the parts of a bucket differ between ranks.
  bool sharded() const { return num_parts_ > 1; }

  // Ascending; together they are the flat buffers.
  const std::vector<FlatRange>& buckets() const { return buckets_; }
  // Part `rank` of bucket `bucket`, where sharded; otherwise all of it.
  FlatRange Part(size_t bucket, int rank) const;

  // What rank `rank` of the group updates, ascending: its parts, or the flat
  // buffers as one range. num_local() elements.
  std::vector<FlatRange> LocalRanges(int rank) const;
  int64_t num_local() const { return size_ / num_parts_; }

  // Buckets [begin, end) that elements of `range` are in.
  FlatRange BucketsOf(const FlatRange& range) const;

 private:
  void Cut(int64_t begin, int64_t end, int64_t bucket_elements);

  int num_parts_;  // of a bucket
  int64_t size_;
  std::vector<FlatRange> buckets_;
};

// The elements of a parameter in the flat buffers.
FlatRange RangeOf(const Parameter& parameter);
// What `ranges` have in common with `range`, in their order.
std::vector<FlatRange> Intersect(const std::vector<FlatRange>& ranges,
                                 const FlatRange& range);

class GradientReducer {
 public:
  // Both must outlive the reducer; `store` has all its parameters, and is
  // aligned.
  GradientReducer(const GradientReducerOptions& options, ParameterStore* store,
                  MeshCommunicators* mesh);

  // Bytes of Allocate, which this rank needs besides the gradients.
  static int64_t WorkspaceBytes(const ParameterStore& store,
                                const DeviceMesh& mesh);
  absl::Status Allocate();

  const BucketLayout& layout() const { return layout_; }

  // The gradients of parameters [first, last), by position in
  // store->parameters(), are complete on this rank: buckets that are complete
  // begin to be summed behind what `stream` holds, the last one first. Ranks of
  // a dp x cp group make the same calls in the same order. CHECK: each
  // parameter once in a step.
  void Ready(size_t first, size_t last, Stream& stream);
  // After the last backward. CHECK: every parameter is ready. What follows on
  // `stream` sees sums, in this rank's parts. Same bits on every rank that
  // holds a sum, and in every repetition. The first error of any sum; nothing
  // may be updated after one.
  absl::Status Finish(Stream& stream);

 private:
  bool reduces() const { return mesh_->dp_cp().size() > 1; }
  void Start(size_t bucket, Stream& stream);
  absl::Status SumOverTp(Stream& stream);
  absl::Status SumOverEnds(Stream& stream);

  ParameterStore* store_;
  MeshCommunicators* mesh_;
  BucketLayout layout_;
  // In this rank's parts: what is summed over tp, and over the ends.
  std::vector<FlatRange> tp_pieces_;
  std::vector<FlatRange> ends_pieces_;
  Buffer packed_;  // fp32, the tp pieces one after the other

  std::vector<int64_t> parameters_in_;  // by bucket
  // Of this step:
  std::vector<int64_t> missing_;  // parameters, by bucket
  std::vector<bool> ready_;       // by parameter
  size_t num_ready_ = 0;
  CommunicationLane::Ticket last_ticket_ = -1;
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_GRADIENT_REDUCER_H_
