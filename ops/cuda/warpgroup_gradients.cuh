// SPDX-License-Identifier: Apache-2.0
//
// gradient_rows.cuh with products of warpgroups (warpgroup.cuh), for bf16 on
// sm_90a. Two warpgroups of 64 own rows share the streamed tiles, in a ring
// that both fill and that lets one be up to a tile ahead of the other, so that
// the tensor cores work for one while the other makes d_scores. Per warpgroup
// and tile t:
//
//   wait for the products of t
//   hand over the copies of t + 1, start those of t + 2
//   d_scores of t, into registers that are left operands
//   start the sums of t and the products of t + 1, wait for the sums

#ifndef CUBIT_OPS_CUDA_WARPGROUP_GRADIENTS_CUH_
#define CUBIT_OPS_CUDA_WARPGROUP_GRADIENTS_CUH_

#include <cstdint>

#include "ops/cuda/gradient_rows.cuh"
#include "ops/cuda/warpgroup.cuh"

namespace cubit {
namespace cuda {

constexpr int kWarpgroupsOfGradients = 2;
constexpr int kGradientStages = 4;

template <int kDim>
struct WarpgroupGradientMemory
    : GradientMemory<BFloat16Products, kDim, /*kSteps=*/1, /*kStreamed=*/64,
                     kGradientStages, 4 * kWarpgroupsOfGradients> {
  PhaseBarrier full[kGradientStages];   // copies have arrived
  PhaseBarrier empty[kGradientStages];  // products have been made
};

template <int kDim, typename System>
class WarpgroupGradients
    : public GradientRows<WarpgroupGradientMemory<kDim>, System> {
 public:
  using Base = GradientRows<WarpgroupGradientMemory<kDim>, System>;
  using Base::Base;

  __device__ void Run() {
    if (threadIdx.x < kNumStages) {
      InitBarrier(m_.full + threadIdx.x, kThreads);
      InitBarrier(m_.empty + threadIdx.x, kThreads / 32);
    }
    this->ClearSums();
    Pass<true>();
    this->FinishColumns();
    __syncthreads();
    Pass<false>();
    this->FinishRows();
  }

 private:
  using Base::first_;
  using Base::in_;
  using Base::kGroups;
  using Base::kStreamed;
  using Base::kThreads;
  using Base::m_;
  using Base::segments_;
  using Base::sums_;
  using typename Base::Element;
  using typename Base::OwnTile;
  using typename Base::Stage;
  using typename Base::StreamedTile;
  static constexpr int kSlices = kDim / 16;  // steps of k in a row
  // Where registers hold all of the own rows, they need not be read again.
  static constexpr bool kOwnInRegisters = kDim == 64;

  // The compiler sees that a value is the same in all lanes: products may not
  // begin where lanes could part.
  __device__ __forceinline__ static int Uniform(int x) {
    return __shfl_sync(0xffffffffu, x, 0);
  }
  __device__ __forceinline__ int GroupBegin() const {
    return first_ + 64 * group_of_warps_;
  }
  template <bool kColumnPass>
  __device__ __forceinline__ void Pass() {
    int begin, end;
    this->template Range<kColumnPass>(&begin, &end);
    begin = Uniform(begin);
    const int tiles = Uniform((end - begin + kStreamed - 1) / kStreamed);
    const int last = tiles - 1;
    BeginPass<kColumnPass>(begin, tiles);
    for (int t = 0; t < last; ++t) {
      FinishProducts();
      HandOver(t + 1);
      if (t + 2 < tiles) LoadTile<kColumnPass>(begin, t + 2);
      MakeGradients<kColumnPass>(begin + t * kStreamed, StageOf(t));
      AwaitCopies(t + 1);
      BeginProducts();
      AddProducts(StageOf(t));
      CommitProducts();
      StartProducts(StageOf(t + 1));
      CommitProducts();
      // Nothing is lost: the products are waited for next. Sums under way from
      // one turn of the loop to the next would be moved by the compiler.
      WaitForProducts<1>();
      HoldAccumulators(sums_[0]);
      Free(t);
    }
    FinishProducts();
    MakeGradients<kColumnPass>(begin + last * kStreamed, StageOf(last));
    BeginProducts();
    AddProducts(StageOf(last));
    CommitProducts();
    FinishProducts();
    Free(last);
    first_tile_ += tiles;
  }

  // So that no register of an accumulator is moved while products write it.
  __device__ __forceinline__ void HoldAllAccumulators() {
    HoldAccumulators(scores_[0]);
    HoldAccumulators(pair_products_[0]);
    HoldAccumulators(sums_[0]);
  }
  __device__ __forceinline__ void BeginProducts() {
    HoldAllAccumulators();
    FenceProducts();
  }
  __device__ __forceinline__ void FinishProducts() {
    WaitForProducts<0>();
    HoldAllAccumulators();
  }

  // The ring goes on from pass to pass: tile t of this one is this use of it.
  __device__ __forceinline__ int UseOf(int t) const { return first_tile_ + t; }
  __device__ __forceinline__ Stage& StageOf(int t) {
    return m_.stages[UseOf(t) % kNumStages];
  }
  // Starts this thread's copies of a tile, into a stage that all have left.
  template <bool kColumnPass>
  __device__ __forceinline__ void LoadTile(int begin, int t) {
    const int use = UseOf(t);
    if (use >= kNumStages) {
      AwaitPhase(m_.empty + use % kNumStages, (use / kNumStages - 1) % 2);
    }
    this->template LoadStage<kColumnPass>(begin + t * kStreamed, &StageOf(t));
    CommitCopies();
  }
  // This thread's copies, all that are under way, are there.
  __device__ __forceinline__ void HandOver(int t) {
    WaitForCopies<0>();
    ShowToTensorCores();
    Report(m_.full + UseOf(t) % kNumStages);
  }
  __device__ __forceinline__ void AwaitCopies(int t) {
    AwaitPhase(m_.full + UseOf(t) % kNumStages, UseOf(t) / kNumStages % 2);
  }
  // This warp has done with a tile.
  __device__ __forceinline__ void Free(int t) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) Report(m_.empty + UseOf(t) % kNumStages);
  }

  // Own rows, the first two tiles, the products of the first.
  template <bool kColumnPass>
  __device__ __forceinline__ void BeginPass(int begin, int tiles) {
    this->template Load<OwnTile>(kColumnPass ? in_.keys : in_.queries, first_,
                                 m_.scored);
    this->template Load<OwnTile>(kColumnPass ? in_.x : in_.y, first_,
                                 m_.weighed);
    LoadTile<kColumnPass>(begin, 0);
    WaitForCopies<0>();
    ShowToTensorCores();
    __syncthreads();  // own rows
    Report(m_.full + UseOf(0) % kNumStages);
    if (tiles > 1) LoadTile<kColumnPass>(begin, 1);
    if (kOwnInRegisters) {
#pragma unroll
      for (int k = 0; k < kSlices; ++k) {
        const int row = 16 * (threadIdx.x / 32);
        BFloat16Products::LoadLeft<OwnTile>(Elements(m_.scored), row, 16 * k,
                                            &scored_[k]);
        BFloat16Products::LoadLeft<OwnTile>(Elements(m_.weighed), row, 16 * k,
                                            &weighed_[k]);
      }
    }
    AwaitCopies(0);
    BeginProducts();
    StartProducts(StageOf(0));
    CommitProducts();
  }

  // Starts S and the products with X or Y of a tile.
  __device__ __forceinline__ void StartProducts(const Stage& stage) {
    MultiplyRows(scored_, m_.scored, stage.scored, scores_[0]);
    MultiplyRows(weighed_, m_.weighed, stage.weighed, pair_products_[0]);
  }

  // result = own rows . streamed rows.
  __device__ __forceinline__ void MultiplyRows(
      const BFloat16Products::Left (&own)[kSlices], const char* own_tile,
      const char* streamed, float (&result)[kGroups][4]) {
#pragma unroll
    for (int k = 0; k < kSlices; ++k) {
      const uint64_t b =
          RowsOperand<StreamedTile>(Elements(streamed), 0, 16 * k);
      if (kOwnInRegisters) {
        MultiplyWarpgroup</*kColumns=*/false>(result, own[k].x, b, k > 0);
      } else {
        MultiplyWarpgroup(result,
                          RowsOperand<OwnTile>(Elements(own_tile),
                                               64 * group_of_warps_, 16 * k),
                          b, k > 0);
      }
    }
  }

  // d_scores of a tile, as left operands.
  template <bool kColumnPass>
  __device__ __forceinline__ void MakeGradients(int row, const Stage& stage) {
    const bool on_diagonal =
        kColumnPass ? row <= GroupBegin() + 63 : row + kStreamed > GroupBegin();
    bool crosses = false;
    if (segments_ != nullptr) {
      const int low = kColumnPass ? first_ : row;
      const int high = kColumnPass ? min(row + kStreamed, in_.seq_len) - 1
                                   : this->OwnEnd() - 1;
      crosses = segments_[low] != segments_[high];
    }
    this->template TileGradients<kColumnPass>(row, stage, on_diagonal, crosses,
                                              pair_products_, &scores_);
#pragma unroll
    for (int k = 0; k < kStreamed / 16; ++k) {
      d_scores_[k] = BFloat16Products::FromAccumulators(scores_[0][2 * k],
                                                        scores_[0][2 * k + 1]);
    }
  }

  // Starts sums_ += d_scores streamed rows.
  __device__ __forceinline__ void AddProducts(const Stage& stage) {
#pragma unroll
    for (int k = 0; k < kStreamed / 16; ++k) {
      MultiplyTileRows<StreamedTile>(sums_[0], d_scores_[k].x,
                                     Elements(stage.scored), 16 * k,
                                     /*add=*/true);
    }
  }

  __device__ __forceinline__ static const Element* Elements(const char* tile) {
    return reinterpret_cast<const Element*>(tile);
  }

  static constexpr int kNumStages = kGradientStages;
  const int group_of_warps_ = Uniform(threadIdx.x / 128);
  int first_tile_ = 0;                       // tiles of earlier passes
  BFloat16Products::Left scored_[kSlices];   // own rows, if in registers
  BFloat16Products::Left weighed_[kSlices];  // their X or Y
  float scores_[1][kGroups][4];
  float pair_products_[1][kGroups][4];
  BFloat16Products::Left d_scores_[kStreamed / 16];
};

template <int kDim, typename System>
__global__ void __launch_bounds__(WarpgroupGradientMemory<kDim>::kThreads, 1)
    WarpgroupGradientsKernel(const __grid_constant__ AdjointArguments in) {
  using Memory = WarpgroupGradientMemory<kDim>;
  extern __shared__ __align__(1024) char shared[];
  const int pair = blockIdx.y;
  const int b = pair / in.num_heads;
  const int h = pair % in.num_heads;
  if (!System::IsDelta(in) && blockIdx.x == 0 && b == 0 && threadIdx.x < 32) {
    AddLogLambdaGradient(in, h);
  }
  WarpgroupGradients<kDim, System>(in, b, h, blockIdx.x * Memory::kRows,
                                   reinterpret_cast<Memory*>(shared))
      .Run();
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_WARPGROUP_GRADIENTS_CUH_
