// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include "ops/cuda/adjoint_launch.cuh"
#include "ops/cuda/solve_engines.h"
#include "ops/cuda/tensor_map.cuh"
#include "ops/cuda/warpgroup_gradients.cuh"

namespace cubit {
namespace cuda {
namespace {

// Delta's factors one behind the other, for the copy engine.
__global__ void CopyFactorsKernel(const __grid_constant__ AdjointArguments in) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= in.seq_len) return;
  const int pair = blockIdx.y;
  const auto* beta = in.beta.Head<const __nv_bfloat16>(pair / in.num_heads,
                                                       pair % in.num_heads);
  in.factors[static_cast<int64_t>(pair) * in.seq_len + row] =
      ToFloat(beta[row * in.beta.seq_stride]);
}
void CopyFactors(const AdjointArguments& in, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const dim3 grid((in.seq_len + kThreads - 1) / kThreads,
                  in.batch * in.num_heads);
  CopyFactorsKernel<<<grid, kThreads, 0, stream>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
}

template <int kDim, typename System>
void LaunchGradients(const AdjointArguments& in, const GradientMaps& maps,
                     cudaStream_t stream) {
  using Memory = WarpgroupGradientMemory<kDim>;
  constexpr auto kKernel = WarpgroupGradientsKernel<kDim, System>;
  AllowSharedMemory(kKernel, sizeof(Memory));
  const dim3 grid((in.seq_len + Memory::kRows - 1) / Memory::kRows,
                  in.batch * in.num_heads);
  kKernel<<<grid, Memory::kThreads, sizeof(Memory), stream>>>(in, maps);
  CUBIT_CUDA_CHECK_LAUNCH();
}

template <int kDim>
void Launch(const AdjointArguments& in, const GradientMaps& maps,
            cudaStream_t stream) {
  CUBIT_CHECK(in.rotary_table == nullptr || in.head_dim == kDim);
  LaunchAdjointSolve<BFloat16Products, kDim, /*kWarpgroup=*/true>(in, stream);
  if (in.is_delta()) {
    CopyFactors(in, stream);
    LaunchGradients<kDim, DeltaAlone>(in, maps, stream);
  } else {
    LaunchGradients<kDim, KrrAlone>(in, maps, stream);
  }
}

// Whether the copy engine takes a tile's part of an array [.., T] of 4-byte
// numbers; null counts as one.
bool HasWholeVectors(const void* per_token, int seq_len) {
  return reinterpret_cast<uintptr_t>(per_token) % 16 == 0 && seq_len % 4 == 0;
}

bool IsServed(const AdjointArguments& in) {
  for (const void* per_token : {static_cast<const void*>(in.minus_lse),
                                static_cast<const void*>(in.segments),
                                static_cast<const void*>(in.column_scale),
                                static_cast<const void*>(in.key_exponents),
                                static_cast<const void*>(in.minus_delta),
                                static_cast<const void*>(in.factors)}) {
    if (!HasWholeVectors(per_token, in.seq_len)) return false;
  }
  return in.v.vectors && in.d_x.vectors && in.d_v.vectors &&
         in.d_queries.vectors;
}

bool MakeMaps(const AdjointArguments& in, GradientMaps* maps) {
  const HeadExtents extents = {in.batch, in.seq_len, in.num_heads, in.head_dim};
  const auto make = [&](const DeviceHeads& heads, TensorMap* map) {
    return MakeTensorMap(heads, extents, map);
  };
  return make(in.queries, &maps->queries) && make(in.keys, &maps->keys) &&
         make(in.x, &maps->x) && make(in.y, &maps->y);
}

}  // namespace

bool AdjointWarpgroup(const AdjointArguments& in, cudaStream_t stream) {
  GradientMaps maps;
  if (!IsDimOfWarpgroups(in.head_dim) || !IsServed(in) ||
      !MakeMaps(in, &maps)) {
    return false;
  }
  if (in.head_dim <= 64) {
    Launch<64>(in, maps, stream);
  } else {
    Launch<128>(in, maps, stream);
  }
  return true;
}

}  // namespace cuda
}  // namespace cubit
