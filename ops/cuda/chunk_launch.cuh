// SPDX-License-Identifier: Apache-2.0
//
// What the launches of chunk_pair.cuh, chunk_solve.cuh and chunk_rows.cuh
// share.

#ifndef CUBIT_OPS_CUDA_CHUNK_LAUNCH_CUH_
#define CUBIT_OPS_CUDA_CHUNK_LAUNCH_CUH_

#include <cstdint>
#include <type_traits>

#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/solve_engines.h"
#include "ops/cuda/warp_products.cuh"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {

// Head dims between these are padded with zeros in shared memory, as in the
// solves of whole sequences: body(std::integral_constant<int, kDim>).
template <typename Products, typename Body>
void DispatchChunkDim(int head_dim, const Body& body) {
  CUBIT_CHECK_LE(head_dim, kMaxChunkDim) << "head dim of the GPU's chunk ops";
  if constexpr (kByWarpgroup<Products>) {
    CUBIT_CHECK(IsDimOfWarpgroups(head_dim)) << head_dim;
    if (head_dim <= 64) return body(std::integral_constant<int, 64>());
  } else {
    if (head_dim <= 32) return body(std::integral_constant<int, 32>());
    if (head_dim <= 64) return body(std::integral_constant<int, 64>());
    if (head_dim <= 80) return body(std::integral_constant<int, 80>());
  }
  body(std::integral_constant<int, 128>());
}

template <typename Arguments>
void LaunchChunkKernel(void (*kernel)(Arguments), const Arguments& in,
                       dim3 grid, size_t shared_bytes, cudaStream_t stream,
                       int threads = kChunkThreads) {
  CUBIT_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared_bytes)));
  kernel<<<grid, threads, shared_bytes, stream>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
}

inline unsigned ChunkBlocks(int rows, int of_block = kChunkRows) {
  return static_cast<unsigned>((rows + of_block - 1) / of_block);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_LAUNCH_CUH_
