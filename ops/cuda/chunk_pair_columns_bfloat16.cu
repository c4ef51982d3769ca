// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/chunk_pair_launch.cuh"

namespace cubit {
namespace cuda {

template void LaunchChunkColumns<BFloat16Products, true, false>(
    const ChunkArguments&, cudaStream_t);
template void LaunchChunkColumns<BFloat16Products, false, true>(
    const ChunkArguments&, cudaStream_t);
template void LaunchChunkColumns<BFloat16Products, true, true>(
    const ChunkArguments&, cudaStream_t);

}  // namespace cuda
}  // namespace cubit
