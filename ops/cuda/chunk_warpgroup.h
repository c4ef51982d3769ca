// SPDX-License-Identifier: Apache-2.0

// Solves of a chunk by warpgroups: bf16 tensors of whole 16-byte vectors, KRR,
// head dims of solve_engines.h. False, and nothing is done, for others.

#ifndef CUBIT_OPS_CUDA_CHUNK_WARPGROUP_H_
#define CUBIT_OPS_CUDA_CHUNK_WARPGROUP_H_

#include <cuda_runtime.h>

#include "ops/cuda/chunk_arguments.h"
#include "runtime/device.h"

namespace cubit {
namespace cuda {

// kernel_x is written where lambda > 1 alone.
bool ChunkSolveWarpgroup(const ChunkSolveArguments& in, Stream& stream);
bool ChunkAdjointSolveWarpgroup(const ChunkSolveArguments& in,
                                cudaStream_t stream);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_WARPGROUP_H_
