// SPDX-License-Identifier: Apache-2.0

#include "ops/chunked_solve.h"
#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_rows.cuh"
#include "ops/cuda/chunk_views.h"
#include "ops/cuda/solve_queue.cuh"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
namespace {

constexpr auto kFloat32 = ChunkDTypes::kFloat32;
constexpr auto kEither = ChunkDTypes::kFloat32OrBFloat16;
// Products of fp32 tensors, as in delta_solve.h.
constexpr auto kProducts = ChunkProducts::kBFloat16x3;

struct RowGradients {
  ChunkHeads y, kernel_x, beta, d_beta;
  float* delta;

  __device__ void Start(const ChunkExtents&, int) {}
  __device__ void operator()(const ChunkRowPlace& place, int head_dim) const {
    const double product = RowDot<double>(y, kernel_x, place, head_dim);
    if (threadIdx.x % kWarpSize != 0) return;
    const double factor =
        static_cast<double>(ChunkElement(beta, place.In(beta)));
    StoreChunkElement(static_cast<float>(-product), d_beta, place.In(d_beta));
    delta[place.scalar] = static_cast<float>(-factor * product);
  }
};

ChunkArguments PairOf(const DeltaChunk& rows, const DeltaChunk& columns,
                      bool diagonal) {
  ChunkArguments in = PairOfChunks(rows.w, "w", columns.k, "k",
                                   {diagonal, rows.segments, columns.segments},
                                   /*strict=*/true, rows.scale);
  in.row_factor = -1;
  in.column_factor = rows.scale;
  return in;
}

void SetBeta(const DeltaChunk& rows, ChunkArguments* in) {
  in->beta = ChunkScalarsOf(rows.beta, "beta", rows.w, kEither);
}

ChunkSolveArguments SolveOf(const DeltaChunk& chunk, Stream& stream) {
  const ConstHeadTensor& w = chunk.w;
  ChunkSolveArguments in;
  in.chunk = PairOf(chunk, chunk, /*diagonal=*/true);
  in.chunk.row_factor = 1;
  SetBeta(chunk, &in.chunk);
  in.queue = GetSolveQueue(
      w.batch * w.num_heads * ((w.seq_len + kChunkRows - 1) / kChunkRows),
      stream);
  return in;
}

}  // namespace
}  // namespace cuda

void DeltaChunkUpdate(const DeltaChunk& rows, const DeltaChunk& columns,
                      ConstHeadTensor x_columns, const RowSums& sums,
                      Stream& stream) {
  cuda::ChunkArguments in = cuda::PairOf(rows, columns, /*diagonal=*/false);
  in.x = cuda::ChunkHeadsOf(x_columns, "x_columns", columns.k, cuda::kEither);
  cuda::SetChunkSums(sums, rows.w, &in);
  cuda::ChunkForward(cuda::ProductsOf(rows.w, cuda::kProducts), in,
                     CudaStream(stream));
}

void DeltaChunkSolve(const DeltaChunk& rows, ConstHeadTensor v,
                     const RowSums& sums, HeadTensor x, Tensor lse,
                     HeadTensor kernel_x, Stream& stream) {
  const ConstHeadTensor& w = rows.w;
  cuda::CheckChunkScalars(lse, "lse", w);
  cuda::ChunkSolveArguments in = cuda::SolveOf(rows, stream);
  cuda::SetChunkSums(sums, w, &in.chunk);
  in.chunk.x = cuda::ChunkHeadsOf(x, "x", w, cuda::kEither);
  in.v = cuda::ChunkHeadsOf(v, "v", w, cuda::kEither);
  if (!kernel_x.empty()) {
    in.kernel_x = cuda::ChunkHeadsOf(kernel_x, "kernel_x", w, cuda::kFloat32);
  }
  in.lse = lse.data<float>();
  cuda::ChunkSolve(cuda::ProductsOf(w, cuda::kProducts), in, stream);
}

void DeltaChunkAdjointUpdate(const DeltaChunk& rows, ConstTensor lse_rows,
                             ConstHeadTensor y_rows, const DeltaChunk& columns,
                             HeadTensor g, Stream& stream) {
  cuda::ChunkArguments in = cuda::PairOf(rows, columns, /*diagonal=*/false);
  cuda::SetBeta(rows, &in);
  cuda::CheckChunkScalars(lse_rows, "lse_rows", rows.w);
  in.lse = lse_rows.data<float>();
  in.y = cuda::ChunkHeadsOf(y_rows, "y_rows", rows.w, cuda::kEither);
  in.d_values = cuda::ChunkHeadsOf(g, "g", columns.k, cuda::kFloat32);
  cuda::ChunkColumns(cuda::ProductsOf(rows.w, cuda::kProducts), in,
                     CudaStream(stream));
}

void DeltaChunkAdjointSolve(const DeltaChunk& chunk, ConstTensor lse,
                            ConstHeadTensor g, HeadTensor y, Stream& stream) {
  const ConstHeadTensor& w = chunk.w;
  cuda::CheckChunkScalars(lse, "lse", w);
  cuda::ChunkSolveArguments in = cuda::SolveOf(chunk, stream);
  in.chunk.lse = lse.data<float>();
  in.chunk.y = cuda::ChunkHeadsOf(y, "y", w, cuda::kEither);
  in.g = cuda::ChunkHeadsOf(g, "g", w, cuda::kFloat32);
  cuda::ChunkAdjointSolve(cuda::ProductsOf(w, cuda::kProducts), in, stream);
}

void DeltaChunkRowGradients(const DeltaChunk& rows, ConstHeadTensor y,
                            ConstHeadTensor kernel_x, Tensor delta,
                            HeadTensor d_beta, Stream& stream) {
  cuda::CheckChunkScalars(delta, "delta", rows.w);
  cuda::RowGradients gradients;
  gradients.y = cuda::ChunkHeadsOf(y, "y", rows.w, cuda::kEither);
  gradients.kernel_x =
      cuda::ChunkHeadsOf(kernel_x, "kernel_x", rows.w, cuda::kFloat32);
  gradients.beta =
      cuda::ChunkScalarsOf(rows.beta, "beta", rows.w, cuda::kEither);
  gradients.d_beta =
      cuda::ChunkScalarsOf(d_beta, "d_beta", rows.w, cuda::kEither);
  gradients.delta = delta.data<float>();
  cuda::LaunchChunkRowsPass(cuda::ExtentsOf(rows.w), gradients,
                            CudaStream(stream));
}

void DeltaChunkScoreGradients(const DeltaChunk& rows,
                              const AdjointRows& adjoint,
                              const DeltaChunk& columns,
                              ConstHeadTensor x_columns, bool diagonal,
                              HeadTensor d_w, HeadTensor d_k, Stream& stream) {
  const ConstHeadTensor& w = rows.w;
  cuda::ChunkArguments in = cuda::PairOf(rows, columns, diagonal);
  cuda::SetBeta(rows, &in);
  cuda::CheckChunkScalars(adjoint.lse, "lse", w);
  cuda::CheckChunkScalars(adjoint.delta, "delta", w);
  in.x = cuda::ChunkHeadsOf(x_columns, "x_columns", columns.k, cuda::kEither);
  in.y = cuda::ChunkHeadsOf(adjoint.y, "y", w, cuda::kEither);
  in.lse = adjoint.lse.data<float>();
  in.delta = adjoint.delta.data<float>();
  in.d_rows = cuda::ChunkHeadsOf(d_w, "d_w", w, cuda::kFloat32);
  in.d_columns = cuda::ChunkHeadsOf(d_k, "d_k", columns.k, cuda::kFloat32);
  const cuda::ChunkProducts products = cuda::ProductsOf(w, cuda::kProducts);
  cuda::ChunkColumns(products, in, CudaStream(stream));
  cuda::ChunkRows(products, in, CudaStream(stream));
}

}  // namespace cubit
