// SPDX-License-Identifier: Apache-2.0
//
// Launches of chunk_solve.cuh for one kind of products: instantiated by
// chunk_solve_*.cu, which compile side by side.

#ifndef CUBIT_OPS_CUDA_CHUNK_SOLVE_LAUNCH_CUH_
#define CUBIT_OPS_CUDA_CHUNK_SOLVE_LAUNCH_CUH_

#include "ops/cuda/chunk_launch.cuh"
#include "ops/cuda/chunk_solve.cuh"

namespace cubit {
namespace cuda {

template <template <typename> class Solver, typename Products, bool kAscending>
void LaunchChunkSolver(const ChunkSolveArguments& in, cudaStream_t stream) {
  const ChunkArguments& chunk = in.chunk;
  const dim3 grid(ChunkBlocks(chunk.num_rows) *
                  static_cast<unsigned>(chunk.batch * chunk.num_heads));
  DispatchChunkDim<Products>(chunk.head_dim, [&](auto dim) {
    using Memory = ChunkSolveMemory<Products, decltype(dim)::value>;
    LaunchChunkKernel(ChunkSolveKernel<Solver, Memory, kAscending>, in, grid,
                      sizeof(Memory), stream);
  });
}

template <typename Products>
void LaunchChunkSolve(const ChunkSolveArguments& in, cudaStream_t stream) {
  LaunchChunkSolver<ChunkSolver, Products, /*kAscending=*/true>(in, stream);
}
template <typename Products>
void LaunchChunkAdjointSolve(const ChunkSolveArguments& in,
                             cudaStream_t stream) {
  LaunchChunkSolver<ChunkAdjointSolver, Products, /*kAscending=*/false>(in,
                                                                        stream);
}

// Instantiated in chunk_solve_*.cu.
extern template void LaunchChunkSolve<BFloat16Products>(
    const ChunkSolveArguments&, cudaStream_t);
extern template void LaunchChunkSolve<BFloat16x3Products>(
    const ChunkSolveArguments&, cudaStream_t);
extern template void LaunchChunkAdjointSolve<BFloat16Products>(
    const ChunkSolveArguments&, cudaStream_t);
extern template void LaunchChunkAdjointSolve<BFloat16x3Products>(
    const ChunkSolveArguments&, cudaStream_t);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_SOLVE_LAUNCH_CUH_
