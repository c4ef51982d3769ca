// SPDX-License-Identifier: Apache-2.0
//
// Launches both kernels of adjoint.h for one kind of product: instantiated by
// adjoint_*.cu, which compile side by side.

#ifndef CUBIT_OPS_CUDA_ADJOINT_LAUNCH_CUH_
#define CUBIT_OPS_CUDA_ADJOINT_LAUNCH_CUH_

#include <algorithm>

#include "ops/cuda/adjoint.h"
#include "ops/cuda/adjoint_solve.cuh"
#include "ops/cuda/krr_health.cuh"
#include "ops/cuda/score_gradients.cuh"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {

template <typename Kernel>
void AllowSharedMemory(Kernel kernel, size_t bytes) {
  CUBIT_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(bytes)));
}

// How the score gradients are tiled: measured (docs/performance.md).
template <typename Products, int kDim>
struct GradientTiling {
  static constexpr int kSteps = 1;
  static constexpr int kStreamed = 32;
  static constexpr int kStages = 2;
  static constexpr int kBlocksPerMultiprocessor = 1;
};
template <int kDim>
struct GradientTiling<BFloat16Products, kDim> {
  static constexpr int kSteps = 2;
  static constexpr int kStreamed = 32;
  static constexpr int kStages = 2;
  static constexpr int kBlocksPerMultiprocessor = 2;
};

template <typename Products, int kDim, bool kWarpgroup = false,
          bool kOnlyY = false>
void LaunchAdjointSolve(const AdjointArguments& in, cudaStream_t stream) {
  constexpr auto kKernel =
      AdjointSolveKernel<Products, kDim, kWarpgroup, kOnlyY>;
  constexpr size_t kBytes =
      sizeof(AdjointSolveMemory<Products, kDim, kWarpgroup>);
  static const int blocks_of_multiprocessor = [&] {
    AllowSharedMemory(kKernel, kBytes);
    int count = 0;
    CUBIT_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &count, kKernel, kSolveThreads, kBytes));
    CUBIT_CHECK_GT(count, 0)
        << "the adjoint's kernel needs " << kBytes << " bytes of shared memory";
    return count;
  }();
  const int num_blocks = (in.seq_len + kSolveBlock - 1) / kSolveBlock;
  const int num_items = in.batch * in.num_heads * num_blocks;
  const int grid =
      std::min(num_items, NumMultiprocessors() * blocks_of_multiprocessor);
  kKernel<<<grid, kSolveThreads, kBytes, stream>>>(in, num_items);
  CUBIT_CUDA_CHECK_LAUNCH();
  if (in.health == nullptr) return;
  ReduceHealth(in.health_parts, grid, in.log_lambda, in.num_heads, in.health,
               stream);
}

template <typename Products, int kDim,
          typename Tiling = GradientTiling<Products, kDim>>
void LaunchScoreGradients(const AdjointArguments& in, cudaStream_t stream) {
  using Memory = GradientMemory<Products, kDim, Tiling::kSteps,
                                Tiling::kStreamed, Tiling::kStages, 4>;
  constexpr auto kKernel =
      ScoreGradientsKernel<Products, Memory, Tiling::kBlocksPerMultiprocessor>;
  AllowSharedMemory(kKernel, sizeof(Memory));
  const dim3 grid((in.seq_len + Memory::kRows - 1) / Memory::kRows,
                  in.batch * in.num_heads);
  kKernel<<<grid, Memory::kThreads, sizeof(Memory), stream>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
}

template <typename Products, int kDim>
void LaunchAdjointOfDim(const AdjointArguments& in, cudaStream_t stream) {
  CUBIT_CHECK(in.rotary_table == nullptr || in.head_dim == kDim);
  LaunchAdjointSolve<Products, kDim>(in, stream);
  LaunchScoreGradients<Products, kDim>(in, stream);
}

// Head dims between these are padded with zeros in shared memory.
template <typename Products>
void LaunchAdjoint(const AdjointArguments& in, cudaStream_t stream) {
  CUBIT_CHECK_LE(in.head_dim, 128) << "head dim of the GPU's solves";
  if (in.head_dim <= 32) {
    LaunchAdjointOfDim<Products, 32>(in, stream);
  } else if (in.head_dim <= 64) {
    LaunchAdjointOfDim<Products, 64>(in, stream);
  } else if (in.head_dim <= 80) {
    LaunchAdjointOfDim<Products, 80>(in, stream);
  } else {
    LaunchAdjointOfDim<Products, 128>(in, stream);
  }
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ADJOINT_LAUNCH_CUH_
