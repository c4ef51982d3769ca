// SPDX-License-Identifier: Apache-2.0
//
// Sequences spread over ranks by a wavefront or a ring need the CPU: the plan
// of a run (launch/parallel_plan.h) refuses them on a GPU. These definitions
// let the worker for a GPU link, and stop what should not have got here.

#include "ops/chunked_solve.h"
#include "runtime/check.h"

namespace cubit {
namespace {

void RefuseOnGpu() {
  CUBIT_CHECK(false) << "cp_method wavefront and ring need --device=cpu; on a "
                        "GPU choose parallel.cp_method ulysses";
}

}  // namespace

void BeginKrrRows(const KrrChunk&, const RowSums&, Stream&) { RefuseOnGpu(); }

void KrrChunkUpdate(const KrrChunk&, const KrrChunk&, ConstHeadTensor,
                    const RowSums&, Stream&) {
  RefuseOnGpu();
}

void KrrChunkSolve(const KrrChunk&, const KrrRightSide&, const RowSums&,
                   HeadTensor, Tensor, HeadTensor, Stream&) {
  RefuseOnGpu();
}

void KrrChunkAdjointUpdate(const KrrChunk&, ConstTensor, ConstHeadTensor,
                           const KrrChunk&, HeadTensor, Stream&) {
  RefuseOnGpu();
}

void KrrChunkAdjointSolve(const KrrChunk&, ConstTensor, ConstTensor,
                          ConstHeadTensor, HeadTensor, Stream&) {
  RefuseOnGpu();
}

void KrrChunkRowGradients(const KrrRightSide&, ConstHeadTensor, ConstHeadTensor,
                          ConstHeadTensor, const KrrRowGradients&, Stream&) {
  RefuseOnGpu();
}

void KrrChunkScoreGradients(const KrrChunk&, const AdjointRows&,
                            const KrrChunk&, ConstHeadTensor, bool,
                            const KrrScoreGradients&, Stream&) {
  RefuseOnGpu();
}

void KrrChunkFinish(const KrrChunk&, ConstTensor, ConstHeadTensor,
                    ConstHeadTensor, HeadTensor, Tensor, Stream&) {
  RefuseOnGpu();
}

void DeltaChunkUpdate(const DeltaChunk&, const DeltaChunk&, ConstHeadTensor,
                      const RowSums&, Stream&) {
  RefuseOnGpu();
}

void DeltaChunkSolve(const DeltaChunk&, ConstHeadTensor, const RowSums&,
                     HeadTensor, Tensor, HeadTensor, Stream&) {
  RefuseOnGpu();
}

void DeltaChunkAdjointUpdate(const DeltaChunk&, ConstTensor, ConstHeadTensor,
                             const DeltaChunk&, HeadTensor, Stream&) {
  RefuseOnGpu();
}

void DeltaChunkAdjointSolve(const DeltaChunk&, ConstTensor, ConstHeadTensor,
                            HeadTensor, Stream&) {
  RefuseOnGpu();
}

void DeltaChunkRowGradients(const DeltaChunk&, ConstHeadTensor, ConstHeadTensor,
                            Tensor, HeadTensor, Stream&) {
  RefuseOnGpu();
}

void DeltaChunkScoreGradients(const DeltaChunk&, const AdjointRows&,
                              const DeltaChunk&, ConstHeadTensor, bool,
                              HeadTensor, HeadTensor, Stream&) {
  RefuseOnGpu();
}

}  // namespace cubit
