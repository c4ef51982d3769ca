// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_pair_launch.cuh"
#include "ops/cuda/chunk_solve_launch.cuh"
#include "ops/cuda/chunk_warpgroup.h"
#include "ops/cuda/solve_engines.h"

namespace cubit {
namespace cuda {
namespace {

bool IsEmpty(const ChunkArguments& in) {
  return in.batch * in.num_heads == 0 || in.num_rows == 0 ||
         in.num_columns == 0;
}

bool UsesWarpgroups(ChunkProducts products) {
  return products == ChunkProducts::kBFloat16 &&
         GetSolveEngine() == SolveEngine::kWarpgroup;
}

template <typename Products>
void LaunchSomeColumns(const ChunkArguments& in, cudaStream_t stream) {
  const bool values = !in.d_values.empty();
  const bool scores = !in.d_columns.empty();
  if (values && scores) {
    return LaunchChunkColumns<Products, true, true>(in, stream);
  }
  if (values) return LaunchChunkColumns<Products, true, false>(in, stream);
  LaunchChunkColumns<Products, false, true>(in, stream);
}

}  // namespace

void ChunkForward(ChunkProducts products, const ChunkArguments& in,
                  cudaStream_t stream) {
  if (IsEmpty(in)) return;
  if (UsesWarpgroups(products) && IsDimOfWarpgroups(in.head_dim)) {
    return LaunchChunkForward<WarpgroupProducts>(in, stream);
  }
  switch (products) {
    case ChunkProducts::kBFloat16:
      return LaunchChunkForward<BFloat16Products>(in, stream);
    case ChunkProducts::kBFloat16x3:
      return LaunchChunkForward<BFloat16x3Products>(in, stream);
    case ChunkProducts::kTFloat32x3:
      return LaunchChunkForward<TFloat32x3Products>(in, stream);
  }
}

void ChunkColumns(ChunkProducts products, const ChunkArguments& in,
                  cudaStream_t stream) {
  if (IsEmpty(in)) return;
  if (UsesWarpgroups(products) && IsDimOfWarpgroups(in.head_dim)) {
    return LaunchSomeColumns<WarpgroupProducts>(in, stream);
  }
  const bool values = !in.d_values.empty();
  const bool scores = !in.d_columns.empty();
  switch (products) {
    case ChunkProducts::kBFloat16:
      return LaunchSomeColumns<BFloat16Products>(in, stream);
    case ChunkProducts::kBFloat16x3:
      CUBIT_CHECK(values != scores) << "one pass of a solve";
      if (values) {
        return LaunchChunkColumns<BFloat16x3Products, true, false>(in, stream);
      }
      return LaunchChunkColumns<BFloat16x3Products, false, true>(in, stream);
    case ChunkProducts::kTFloat32x3:
      CUBIT_CHECK(values && scores) << "the backward of attention";
      return LaunchChunkColumns<TFloat32x3Products, true, true>(in, stream);
  }
}

void ChunkRows(ChunkProducts products, const ChunkArguments& in,
               cudaStream_t stream) {
  if (IsEmpty(in)) return;
  if (UsesWarpgroups(products) && IsDimOfWarpgroups(in.head_dim)) {
    return LaunchChunkRows<WarpgroupProducts>(in, stream);
  }
  switch (products) {
    case ChunkProducts::kBFloat16:
      return LaunchChunkRows<BFloat16Products>(in, stream);
    case ChunkProducts::kBFloat16x3:
      return LaunchChunkRows<BFloat16x3Products>(in, stream);
    case ChunkProducts::kTFloat32x3:
      return LaunchChunkRows<TFloat32x3Products>(in, stream);
  }
}

void ChunkSolve(ChunkProducts products, const ChunkSolveArguments& in,
                Stream& stream) {
  if (IsEmpty(in.chunk)) return;
  if (UsesWarpgroups(products) && ChunkSolveWarpgroup(in, stream)) return;
  if (products == ChunkProducts::kBFloat16) {
    return LaunchChunkSolve<BFloat16Products>(in, CudaStream(stream));
  }
  CUBIT_CHECK(products == ChunkProducts::kBFloat16x3);
  LaunchChunkSolve<BFloat16x3Products>(in, CudaStream(stream));
}

void ChunkAdjointSolve(ChunkProducts products, const ChunkSolveArguments& in,
                       Stream& stream) {
  if (IsEmpty(in.chunk)) return;
  const cudaStream_t cuda_stream = CudaStream(stream);
  if (UsesWarpgroups(products) && ChunkAdjointSolveWarpgroup(in, cuda_stream)) {
    return;
  }
  if (products == ChunkProducts::kBFloat16) {
    return LaunchChunkAdjointSolve<BFloat16Products>(in, cuda_stream);
  }
  CUBIT_CHECK(products == ChunkProducts::kBFloat16x3);
  LaunchChunkAdjointSolve<BFloat16x3Products>(in, cuda_stream);
}

}  // namespace cuda
}  // namespace cubit
