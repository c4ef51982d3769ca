// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/chunk_solve_launch.cuh"

namespace cubit {
namespace cuda {

template void LaunchChunkSolve<BFloat16Products>(const ChunkSolveArguments&,
                                                 cudaStream_t);

}  // namespace cuda
}  // namespace cubit
