// SPDX-License-Identifier: Apache-2.0
//
// What compute-sanitizer's racecheck (CUDA 13.0) reports of a ring of stages
// that bulk copies fill and a warpgroup reads, written with NVIDIA's own
// cuda::barrier and memcpy_async_tx (CUDA C++ Programming Guide, "Tensor Memory
// Access"). A full and an empty barrier of each stage order every copy and
// every read, so it is free of races; the tool reports the copies against the
// reads all the same, as it does for the score gradients (docs/performance.md).
//
//   nvcc -std=c++17 -O3 -lineinfo -arch=sm_90a docs/racecheck_ring.cu -o ring
//   compute-sanitizer --tool racecheck ./ring

#include <cstdio>

#include <cuda/barrier>
#include <cuda/ptx>

// Barriers in shared memory are initialised by init.
#pragma nv_diag_suppress static_var_with_dynamic_init

using Barrier = cuda::barrier<cuda::thread_scope_block>;

constexpr int kStages = 3;
constexpr int kFloats = 2048;  // of a stage
constexpr int kUses = 48;
constexpr int kThreads = 128;

__global__ void Ring(const float* from, float* to) {
  __shared__ alignas(128) float stage[kStages][kFloats];
  __shared__ Barrier full[kStages];
  __shared__ Barrier empty[kStages];
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      init(&full[s], 1);
      init(&empty[s], kThreads / 32);
    }
    cuda::ptx::fence_proxy_async(cuda::ptx::space_shared);
  }
  __syncthreads();
  const auto produce = [&](int use) {
    if (use >= kUses) return;
    const int s = use % kStages;
    if (use >= kStages) empty[s].wait_parity((use / kStages - 1) & 1);
    cuda::device::memcpy_async_tx(stage[s], from + use * kFloats,
                                  cuda::aligned_size_t<16>(sizeof(stage[s])),
                                  full[s]);
    (void)cuda::device::barrier_arrive_tx(full[s], 1, sizeof(stage[s]));
  };
  if (threadIdx.x == 0) {
    for (int use = 0; use < kStages - 1; ++use) produce(use);
  }
  float sum = 0;
  for (int use = 0; use < kUses; ++use) {
    if (threadIdx.x == 0) produce(use + kStages - 1);
    const int s = use % kStages;
    full[s].wait_parity((use / kStages) & 1);
    for (int i = static_cast<int>(threadIdx.x); i < kFloats; i += kThreads) {
      sum += stage[s][i] + stage[s][(i * 7 + 13) % kFloats];
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) (void)empty[s].arrive();
  }
  to[blockIdx.x * kThreads + threadIdx.x] = sum;
}

int main() {
  constexpr int kBlocks = 2048;
  float* from = nullptr;
  float* to = nullptr;
  cudaMalloc(&from, kUses * kFloats * sizeof(float));
  cudaMalloc(&to, kBlocks * kThreads * sizeof(float));
  cudaMemset(from, 0, kUses * kFloats * sizeof(float));
  Ring<<<kBlocks, kThreads>>>(from, to);
  std::printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
}
