// SPDX-License-Identifier: Apache-2.0
//
// The kernel of adjoint_solver.cuh. A block of threads solves blocks of rows,
// one after the other. A counter gives them out last first, all heads in turn,
// so that whoever waits, waits for a block that is already being worked on.

#ifndef CUBIT_OPS_CUDA_ADJOINT_SOLVE_CUH_
#define CUBIT_OPS_CUDA_ADJOINT_SOLVE_CUH_

#include <cstdint>

#include "ops/cuda/adjoint_dots.cuh"
#include "ops/cuda/adjoint_solver.cuh"
#include "ops/cuda/krr_health.cuh"
#include "ops/cuda/solve_queue.cuh"

namespace cubit {
namespace cuda {

// Of a thread block that has no more items: its part of the health.
template <typename Memory>
__device__ __forceinline__ void StoreHealthPart(const AdjointArguments& in,
                                                const Memory& m) {
  static_assert(kHealthNumbers <= kSolveThreads / 32);
  __syncthreads();
  const int number = threadIdx.x / 32;  // each by a warp
  if (number >= kHealthNumbers) return;
  const int lane = threadIdx.x % 32;
  float largest = m.health[number][lane];
#pragma unroll
  for (int i = lane + 32; i < kSolveThreads; i += 32) {
    largest = Larger(m.health[number][i], largest);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    largest = Larger(__shfl_xor_sync(0xffffffffu, largest, offset), largest);
  }
  if (lane != 0) return;
  in.health_parts[blockIdx.x * kHealthNumbers + number] = largest;
}

template <typename Products, int kDim, bool kWarpgroup = false,
          bool kOnlyY = false>
__global__ void __launch_bounds__(kSolveThreads,
                                  kWarpgroup&& kDim <= 64 ? 3 : 1)
    AdjointSolveKernel(const __grid_constant__ AdjointArguments in,
                       int num_items) {
  using Memory = AdjointSolveMemory<Products, kDim, kWarpgroup>;
  extern __shared__ __align__(1024) char shared[];
  Memory* memory = reinterpret_cast<Memory*>(shared);
  // By thread 0. Items are taken one ahead, so that nobody waits for the
  // counter; whoever holds one not begun works on a block that was given out
  // before it.
  const auto take = [&] {
    return static_cast<int>(atomicAdd(&in.queue->next_item, 1u));
  };
  if (threadIdx.x == 0) memory->item = take();
  const bool wants_health = !kOnlyY && in.health_parts != nullptr;
  if (wants_health) {
    for (int i = 0; i < kHealthNumbers; ++i) {
      memory->health[i][threadIdx.x] = HealthOfNoRow(i);
    }
  }
  __syncthreads();
  const int num_pairs = in.batch * in.num_heads;
  const int num_blocks = (in.seq_len + kSolveBlock - 1) / kSolveBlock;
  SolveItem item;
  item.launch = *const_cast<volatile uint32_t*>(&in.queue->launch) + 1;
  for (;;) {
    const int number = memory->item;
    if (number >= num_items) break;
    int next = 0;
    if (threadIdx.x == 0) next = take();
    const int pair = number % num_pairs;
    item.b = pair / in.num_heads;
    item.h = pair % in.num_heads;
    item.block = num_blocks - 1 - number / num_pairs;
    item.first = item.block * kSolveBlock;
    item.row0 = static_cast<int64_t>(pair) * in.seq_len;
    AdjointSolver<Products, kDim, kWarpgroup, kOnlyY>(in, item, memory).Run();
    // Read by all behind barriers of Run.
    if (threadIdx.x == 0) memory->item = next;
    __syncthreads();
  }
  if (wants_health) StoreHealthPart(in, *memory);
  if (threadIdx.x == 0) LeaveQueue(in.queue);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ADJOINT_SOLVE_CUH_
