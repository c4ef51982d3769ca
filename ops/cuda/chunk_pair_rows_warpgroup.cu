// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/chunk_pair_launch.cuh"

namespace cubit {
namespace cuda {

template void LaunchChunkRows<WarpgroupProducts>(const ChunkArguments&,
                                                 cudaStream_t);

}  // namespace cuda
}  // namespace cubit
