// SPDX-License-Identifier: Apache-2.0
//
// Launchers of the attention kernels: they choose the tile sizes for a head dim
// and check nothing; ops/attention_cuda.cu has done that.

#ifndef CUBIT_OPS_CUDA_ATTENTION_LAUNCH_CUH_
#define CUBIT_OPS_CUDA_ATTENTION_LAUNCH_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "ops/cuda/attention_backward.cuh"
#include "ops/cuda/attention_forward.cuh"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {

// Largest head dim of the kernels.
constexpr int kMaxAttentionDim = 128;

void LaunchAttentionForward(
    const AttentionForwardArguments<__nv_bfloat16>& arguments, int batch,
    cudaStream_t stream);
void LaunchAttentionForward(const AttentionForwardArguments<float>& arguments,
                            int batch, cudaStream_t stream);

// d_q, d_k and d_v from lse and delta.
void LaunchAttentionBackward(
    const AttentionBackwardArguments<__nv_bfloat16>& arguments, int batch,
    cudaStream_t stream);
void LaunchAttentionBackward(const AttentionBackwardArguments<float>& arguments,
                             int batch, cudaStream_t stream);

// --- For the files that define them -----------------------------------------

inline int NumBlocks(int count, int per_block) {
  return (count + per_block - 1) / per_block;
}

template <class Arguments>
void LaunchTiles(void (*kernel)(Arguments), const Arguments& arguments,
                 dim3 grid, int threads, int shared_bytes,
                 cudaStream_t stream) {
  CUBIT_CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments);
  CUBIT_CUDA_CHECK_LAUNCH();
}

template <class Tiles>
void LaunchForwardTiles(
    const AttentionForwardArguments<typename Tiles::T>& arguments, int batch,
    cudaStream_t stream) {
  LaunchTiles(AttentionForwardKernel<Tiles>, arguments,
              dim3(batch * arguments.num_heads,
                   NumBlocks(arguments.q.seq_len, Tiles::kRows)),
              Tiles::kThreads, ForwardSharedBytes<Tiles>(), stream);
}

template <class KeyTiles, class QueryTiles>
void LaunchBackwardTiles(
    const AttentionBackwardArguments<typename KeyTiles::T>& arguments,
    int batch, cudaStream_t stream) {
  LaunchTiles(AttentionKeyGradientKernel<KeyTiles>, arguments,
              dim3(batch * arguments.num_heads,
                   NumBlocks(arguments.k.seq_len, KeyTiles::kRows)),
              KeyTiles::kThreads, KeyGradientSharedBytes<KeyTiles>(), stream);
  LaunchTiles(AttentionQueryGradientKernel<QueryTiles>, arguments,
              dim3(batch * arguments.num_heads,
                   NumBlocks(arguments.q.seq_len, QueryTiles::kRows)),
              QueryTiles::kThreads, QueryGradientSharedBytes<QueryTiles>(),
              stream);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ATTENTION_LAUNCH_CUH_
