// SPDX-License-Identifier: Apache-2.0
//
// Launches of the kernels of a pair of chunks for one kind of products:
// instantiated by chunk_pair_*.cu, which compile side by side.

#ifndef CUBIT_OPS_CUDA_CHUNK_PAIR_LAUNCH_CUH_
#define CUBIT_OPS_CUDA_CHUNK_PAIR_LAUNCH_CUH_

#include "ops/cuda/chunk_launch.cuh"
#include "ops/cuda/chunk_pair.cuh"
#include "ops/cuda/chunk_pair_backward.cuh"
#include "ops/cuda/chunk_pair_forward.cuh"

namespace cubit {
namespace cuda {

template <typename Pass>
void LaunchChunkPass(const ChunkArguments& in, int own_rows,
                     cudaStream_t stream) {
  LaunchChunkKernel(ChunkPassKernel<Pass>, in,
                    dim3(ChunkBlocks(own_rows, Pass::kOwnRows),
                         static_cast<unsigned>(in.batch * in.num_heads)),
                    sizeof(typename Pass::Memory), stream, Pass::kThreads);
}

template <typename Products>
void LaunchChunkForward(const ChunkArguments& in, cudaStream_t stream) {
  DispatchChunkDim<Products>(in.head_dim, [&](auto dim) {
    LaunchChunkPass<ChunkForwardPass<Products, decltype(dim)::value>>(
        in, in.num_rows, stream);
  });
}

template <typename Products, bool kValues, bool kScores>
void LaunchChunkColumns(const ChunkArguments& in, cudaStream_t stream) {
  DispatchChunkDim<Products>(in.head_dim, [&](auto dim) {
    LaunchChunkPass<
        ChunkColumnsPass<Products, decltype(dim)::value, kValues, kScores>>(
        in, in.num_columns, stream);
  });
}

template <typename Products>
void LaunchChunkRows(const ChunkArguments& in, cudaStream_t stream) {
  DispatchChunkDim<Products>(in.head_dim, [&](auto dim) {
    LaunchChunkPass<ChunkRowsPass<Products, decltype(dim)::value>>(
        in, in.num_rows, stream);
  });
}

// Instantiated in chunk_pair_*.cu.
extern template void LaunchChunkForward<BFloat16Products>(const ChunkArguments&,
                                                          cudaStream_t);
extern template void LaunchChunkForward<WarpgroupProducts>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkForward<BFloat16x3Products>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkForward<TFloat32x3Products>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkColumns<BFloat16Products, true, false>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkColumns<BFloat16Products, false, true>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkColumns<BFloat16Products, true, true>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkColumns<WarpgroupProducts, true, false>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkColumns<WarpgroupProducts, false, true>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkColumns<WarpgroupProducts, true, true>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkColumns<BFloat16x3Products, true, false>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkColumns<BFloat16x3Products, false, true>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkColumns<TFloat32x3Products, true, true>(
    const ChunkArguments&, cudaStream_t);
extern template void LaunchChunkRows<BFloat16Products>(const ChunkArguments&,
                                                       cudaStream_t);
extern template void LaunchChunkRows<WarpgroupProducts>(const ChunkArguments&,
                                                        cudaStream_t);
extern template void LaunchChunkRows<BFloat16x3Products>(const ChunkArguments&,
                                                         cudaStream_t);
extern template void LaunchChunkRows<TFloat32x3Products>(const ChunkArguments&,
                                                         cudaStream_t);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_PAIR_LAUNCH_CUH_
