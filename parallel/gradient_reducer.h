// SPDX-License-Identifier: Apache-2.0
//
// Sums the gradients of a step over the ranks: over tp and the pipeline's ends
// where a parameter asks for it (Parameter::sum_over_tp, sum_over_ends), and
// over dp and cp for all, in buckets of adjacent parameters that begin while
// the last backward still runs. With ZeRO-1 (Rajbhandari et al.,
// arXiv:1910.02054) a bucket is reduce-scattered: rank r of the dp x cp group
// keeps part r of it; otherwise every rank gets all of it.

#ifndef CUBIT_PARALLEL_GRADIENT_REDUCER_H_
#define CUBIT_PARALLEL_GRADIENT_REDUCER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"

#include "parallel/mesh_communicators.h"
#include "parallel/parameter.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace cubit {

struct GradientReducerOptions {
  bool shard = true;  // ZeRO-1
  int64_t bucket_bytes = int64_t{64} << 20;
};

// Elements [begin, end) of the flat buffers.
struct FlatRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// How the flat buffers are cut. Pure arithmetic on the store's declaration and
// the size of the group: the same on every rank of it, known before anything is
// allocated.
class BucketLayout {
 public:
  // Buckets end between parameters and are multiples of
  // group_size * kAdamWGroup elements, which ParameterStore::AlignTo makes the
  // store's size a multiple of.
  BucketLayout(const ParameterStore& store, int group_size,
               const GradientReducerOptions& options);

  const std::vector<FlatRange>& buckets() const { return buckets_; }
  // Part `rank` of bucket `bucket`; the whole bucket where nothing is sharded.
  FlatRange Part(size_t bucket, int rank) const;
  // Elements of all parts of one rank.
  int64_t num_local() const;
};

class GradientReducer {
 public:
  // Both must outlive the reducer.
  GradientReducer(const GradientReducerOptions& options, ParameterStore* store,
                  MeshCommunicators* mesh);
  absl::Status Allocate();
  static int64_t WorkspaceBytes(const ParameterStore& store,
                                const DeviceMesh& mesh,
                                const GradientReducerOptions& options);

  const BucketLayout& layout() const;

  // The gradients of parameters [first, last), by position in
  // store->parameters(), are complete on this rank: buckets that are complete
  // begin to be summed behind what `stream` holds. Ranks of a group call this
  // in the same order.
  void Ready(size_t first, size_t last, Stream& stream);
  // After the last backward, with every parameter ready: what follows on
  // `stream` sees sums, in this rank's parts.
  absl::Status Finish(Stream& stream);
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_GRADIENT_REDUCER_H_
