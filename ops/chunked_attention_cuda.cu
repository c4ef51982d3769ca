// SPDX-License-Identifier: Apache-2.0
//
// Sequences spread over ranks by a wavefront or a ring need the CPU: the plan
// of a run (launch/parallel_plan.h) refuses them on a GPU. These definitions
// let the worker for a GPU link, and stop what should not have got here.

#include "ops/chunked_attention.h"
#include "runtime/check.h"

namespace cubit {
namespace {

void RefuseOnGpu() {
  CUBIT_CHECK(false) << "cp_method wavefront and ring need --device=cpu; on a "
                        "GPU choose parallel.cp_method ulysses";
}

}  // namespace

void BeginRowSums(const RowSums&, Stream&) { RefuseOnGpu(); }

void AttentionChunkForward(ConstHeadTensor, ConstHeadTensor, ConstHeadTensor,
                           float, const ChunkMask&, const RowSums&, Stream&) {
  RefuseOnGpu();
}

void FinishRowSums(const RowSums&, HeadTensor, Tensor, Stream&) {
  RefuseOnGpu();
}

void AttentionChunkDelta(ConstHeadTensor, ConstHeadTensor, Tensor, Stream&) {
  RefuseOnGpu();
}

void AttentionChunkBackward(const AttentionChunkRows&, ConstHeadTensor,
                            ConstHeadTensor, float, const ChunkMask&,
                            const AttentionChunkGradients&, Stream&) {
  RefuseOnGpu();
}

}  // namespace cubit
