// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/adjoint_launch.cuh"
#include "ops/cuda/warpgroup_gradients.cuh"

namespace cubit {
namespace cuda {
namespace {

template <int kDim, typename System>
void LaunchGradients(const AdjointArguments& in, cudaStream_t stream) {
  using Memory = WarpgroupGradientMemory<kDim>;
  constexpr auto kKernel = WarpgroupGradientsKernel<kDim, System>;
  AllowSharedMemory(kKernel, sizeof(Memory));
  const dim3 grid((in.seq_len + Memory::kRows - 1) / Memory::kRows,
                  in.batch * in.num_heads);
  kKernel<<<grid, Memory::kThreads, sizeof(Memory), stream>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
}

template <int kDim>
void Launch(const AdjointArguments& in, cudaStream_t stream) {
  CUBIT_CHECK(in.rotary_table == nullptr || in.head_dim == kDim);
  LaunchAdjointSolve<BFloat16Products, kDim, /*kWarpgroup=*/true>(in, stream);
  if (in.is_delta()) {
    LaunchGradients<kDim, DeltaAlone>(in, stream);
  } else {
    LaunchGradients<kDim, KrrAlone>(in, stream);
  }
}

}  // namespace

bool AdjointWarpgroup(const AdjointArguments& in, cudaStream_t stream) {
  if (in.head_dim > 32 && in.head_dim <= 64) {
    Launch<64>(in, stream);
  } else if (in.head_dim > 80) {
    Launch<128>(in, stream);
  } else {
    return false;
  }
  return true;
}

}  // namespace cuda
}  // namespace cubit
