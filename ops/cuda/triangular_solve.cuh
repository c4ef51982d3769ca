// SPDX-License-Identifier: Apache-2.0
//
// The forward solve of krr.h and delta_solve.h on one GPU, head by head:
//   X_i + g_i sum_{j<i} E_ij X_j = h_i V_i,   E_ij = exp(S_ij - m_i),
// with Z_i = sum_j E_ij over the visible keys (block_solve.h has the same form
// for the CPU; docs/decisions/0022 the design). It is attention whose values
// are its own outputs. An item of work is one block of rows of one head:
//   1. stream the key tiles before the block: S on tensor cores, E in registers
//      as the left operand of acc += E X; m_i is known beforehand (S_ii, or one
//      more pass over the scores where S_ii is not the maximum), so acc is
//      never rescaled;
//   2. the block's own tile of E, in 16 x 16 sub-blocks; with D_s = I + g E_ss,
//      one warp for each s inverts D_s by substitution in fp32;
//   3. 16 rows at a time: X_s = D_s^-1 (h_s V_s - g_s acc_s) by warp s, then
//      acc_t += E_ts X_s by the warps t > s. Warpgroups invert the block as a
//      whole. Inverses are kept less the identity, whose part of a product is
//      exact without one: X = V where nothing is seen.

#ifndef CUBIT_OPS_CUDA_TRIANGULAR_SOLVE_CUH_
#define CUBIT_OPS_CUDA_TRIANGULAR_SOLVE_CUH_

#include <cstdint>
#include <type_traits>

#include "ops/cuda/solve_queue.cuh"
#include "ops/cuda/solve_systems.cuh"
#include "ops/cuda/warp_forward_solver.cuh"
#include "ops/cuda/warpgroup_forward_solver.cuh"

namespace cubit {
namespace cuda {

// Who computes a block of rows: warps each their own, or a warpgroup together.
template <typename System, typename Products, int kDim, int kWarps,
          bool kWarpgroup, bool kContinues, bool kFewHeads>
using BlockSolver =
    std::conditional_t<kWarpgroup,
                       WarpgroupForwardSolver<System, Products, kDim, kWarps,
                                              kContinues, kFewHeads>,
                       WarpForwardSolver<System, Products, kDim, kWarps>>;

// One thread block: kWarps warps of 16 rows each. kWarpgroup (bf16, four
// warps): tiles are multiplied by the warpgroup as a whole. kContinues (a
// warpgroup's, KRR): rows begin with sums over keys that are not here.
// kFewHeads (a warpgroup's): the chain of a head's blocks is what a solve lasts
// (StreamAhead).
template <typename System, typename Products, int kDim, int kWarps,
          bool kWarpgroup = false, bool kContinues = false,
          bool kFewHeads = false>
class ForwardSolver : public BlockSolver<System, Products, kDim, kWarps,
                                         kWarpgroup, kContinues, kFewHeads> {
  using Base = BlockSolver<System, Products, kDim, kWarps, kWarpgroup,
                           kContinues, kFewHeads>;
  static_assert(kWarpgroup || (!kContinues && !kFewHeads));

 public:
  __device__ ForwardSolver(const SolveArguments& in,
                           typename Base::Shared* shared)
      : Base(in, shared) {}

  __device__ void Run() {
    this->launch_ =
        *const_cast<volatile uint32_t*>(&this->in_.queue->launch) + 1;
    // Items are taken one ahead, so that nobody waits for the counter. Whoever
    // holds an item not begun works on a smaller one, so the smallest that is
    // not done is always worked on.
    int next = TakeItem();
    if (threadIdx.x == 0) this->shared_.item = next;
    __syncthreads();
    for (;;) {
      const int item = this->shared_.item;
      if (item >= this->in_.num_items) break;
      next = TakeItem();
      this->StartItem(item);
      this->StartCopies();
      this->LoadQueries();
      this->FindMaxima();
      this->SolveItem();
      // Shared by the barrier of PublishReady.
      if (threadIdx.x == 0) this->shared_.item = next;
      PublishReady(this->in_.queue->ready + item, this->launch_);
    }
    if (threadIdx.x == 0) LeaveQueue(this->in_.queue);
  }

 private:
  // By thread 0.
  __device__ int TakeItem() const {
    return threadIdx.x == 0
               ? static_cast<int>(atomicAdd(&this->in_.queue->next_item, 1u))
               : 0;
  }
};

template <typename Solver, int kBlocksOfMultiprocessor>
__global__ void __launch_bounds__(Solver::kThreads, kBlocksOfMultiprocessor)
    ForwardSolveKernel(const __grid_constant__ SolveArguments in) {
  extern __shared__ __align__(1024) char shared[];
  Solver solver(in, reinterpret_cast<typename Solver::Shared*>(shared));
  solver.Run();
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_TRIANGULAR_SOLVE_CUH_
