// SPDX-License-Identifier: Apache-2.0
//
// gradient_rows.cuh with products of warpgroups (warpgroup.cuh), for bf16 on
// sm_90a, each of 64 own rows. The tiles of both passes are one sequence, which
// the copy engine brings into a ring (bulk_copy.cuh), started by thread 0 once
// all warps have done with a stage. Per warpgroup and tile t:
//
//   wait for the products of t
//   d_scores of t, into registers that are left operands
//   start the sums of t and the products of t + 1, wait for the sums

#ifndef CUBIT_OPS_CUDA_WARPGROUP_GRADIENTS_CUH_
#define CUBIT_OPS_CUDA_WARPGROUP_GRADIENTS_CUH_

#include <cstdint>

#include "ops/cuda/bulk_copy.cuh"
#include "ops/cuda/gradient_rows.cuh"
#include "ops/cuda/warpgroup.cuh"

namespace cubit {
namespace cuda {

// Descriptions of the tensors whose rows are streamed, in boxes of 64 rows.
struct GradientMaps {
  TensorMap queries, keys, x, y;
};

// Three blocks of one warpgroup hide each other's waits where registers and
// shared memory allow; else one of two, which share what is streamed.
template <int kDim>
struct WarpgroupGradientShape {
  // Where registers hold the own keys or queries, they need not be read again.
  // There is no room for X or Y too: products would wait for each other.
  static constexpr bool kScoredInRegisters = kDim == 64;
  static constexpr int kWarpgroups = kDim == 64 ? 1 : 2;
  static constexpr int kStages = kDim == 64 ? 3 : 4;
  static constexpr int kBlocksOfMultiprocessor = kDim == 64 ? 3 : 1;
};

template <int kDim>
struct WarpgroupGradientMemory
    : GradientMemory<BFloat16Products, kDim, /*kSteps=*/1, /*kStreamed=*/64,
                     WarpgroupGradientShape<kDim>::kStages,
                     4 * WarpgroupGradientShape<kDim>::kWarpgroups> {
  // Of stages: copies have arrived; all warps have left.
  PhaseBarrier full[WarpgroupGradientShape<kDim>::kStages];
  PhaseBarrier empty[WarpgroupGradientShape<kDim>::kStages];
  PhaseBarrier own;  // own rows have arrived
};

template <int kDim, typename System>
class WarpgroupGradients
    : public GradientRows<WarpgroupGradientMemory<kDim>, System> {
 public:
  using Base = GradientRows<WarpgroupGradientMemory<kDim>, System>;

  __device__ __forceinline__
  WarpgroupGradients(const AdjointArguments& in, const GradientMaps& maps,
                     int b, int h, int first, WarpgroupGradientMemory<kDim>* m)
      : Base(in, b, h, first, m), maps_(maps) {
    int end;
    this->template Range<true>(&column_begin_, &end);
    column_begin_ = Uniform(column_begin_);
    column_tiles_ = Uniform((end - column_begin_ + kStreamed - 1) / kStreamed);
    this->template Range<false>(&row_begin_, &end);
    row_begin_ = Uniform(row_begin_);
    row_tiles_ = Uniform((end - row_begin_ + kStreamed - 1) / kStreamed);
  }

  __device__ void Run() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < kNumStages; ++s) {
        InitBarrier(m_.full + s, 1);
        InitBarrier(m_.empty + s, kThreads / 32);
      }
      InitBarrier(&m_.own, 1);
      ShowBarriersToCopies();
    }
    ClearStageScalars();
    ShowToTensorCores();  // to the copies, that is: the same proxy
    __syncthreads();
    if (threadIdx.x == 0) {
      ReportAndExpect(&m_.own, 2 * OwnTile::kBytes);
      CopyOwn(m_.scored, maps_.keys);
      CopyOwn(m_.weighed, maps_.x);
      for (int use = 0; use < kLead; ++use) Produce(use);
    }
    this->ClearSums();
    Pass<true>(0, column_begin_, column_tiles_);
    this->FinishColumns();
    ReplaceOwn();
    Pass<false>(column_tiles_, row_begin_, row_tiles_);
    this->FinishRows();
  }

 private:
  using Base::b_;
  using Base::first_;
  using Base::h_;
  using Base::in_;
  using Base::kGroups;
  using Base::kStreamed;
  using Base::kThreads;
  using Base::m_;
  using Base::row0_;
  using Base::segments_;
  using Base::sums_;
  using typename Base::Element;
  using typename Base::OwnTile;
  using typename Base::Stage;
  using typename Base::StreamedTile;
  static constexpr int kNumStages = Base::kStages;
  static constexpr int kLead = 2;  // tiles whose copies are started ahead
  static_assert(kLead < kNumStages, "a stage that is read is not written");
  static constexpr int kSlices = kDim / 16;  // steps of k in a row
  static constexpr bool kScoredInRegisters =
      WarpgroupGradientShape<kDim>::kScoredInRegisters;

  // The compiler sees that a value is the same in all lanes: products may not
  // begin where lanes could part.
  __device__ __forceinline__ static int Uniform(int x) {
    return __shfl_sync(0xffffffffu, x, 0);
  }

  // What no copy writes; each of Delta's keys has the same scale.
  __device__ __forceinline__ void ClearStageScalars() {
    const int i = threadIdx.x;
    if (i >= kStreamed) return;
#pragma unroll
    for (int s = 0; s < kNumStages; ++s) {
      Stage& stage = m_.stages[s];
      stage.lse[i] = stage.minus_delta[i] = stage.factors[i] = 0;
      stage.column_scale[i] = System::IsDelta(in_) ? in_.scale : 0.0f;
      stage.segments[i] = 0;
    }
  }

  __device__ __forceinline__ void CopyOwn(char* tile, const TensorMap& map) {
    BulkCopyTile<OwnTile>(map, first_, h_, b_, tile, &m_.own);
  }

  // Thread 0 starts the copies of the use-th tile of both passes, once all
  // warps have left the stage that it takes.
  __device__ __forceinline__ void Produce(int use) {
    if (use >= column_tiles_ + row_tiles_) return;
    if (use >= kNumStages) {
      AwaitPhase(m_.empty + use % kNumStages, (use / kNumStages - 1) % 2);
    }
    Stage* stage = m_.stages + use % kNumStages;
    PhaseBarrier* barrier = m_.full + use % kNumStages;
    const bool column_pass = use < column_tiles_;
    const int row = column_pass
                        ? column_begin_ + use * kStreamed
                        : row_begin_ + (use - column_tiles_) * kStreamed;
    const uint32_t count = min(kStreamed, in_.seq_len - row);
    for (uint32_t i = count; i < kStreamed; ++i) {
      // Rows beyond the sequence are zeros and must not become NaN.
      stage->lse[i] = stage->minus_delta[i] = stage->factors[i] = 0;
    }
    ReportAndExpect(barrier, 2 * StreamedTile::kBytes +
                                 count * 4 * NumScalars(column_pass));
    if (column_pass) {
      CopyStage(maps_.queries, maps_.y, row, stage, barrier);
      CopyScalars(in_.lse, row, count, stage->lse, barrier);
      CopyScalars(in_.minus_delta, row, count, stage->minus_delta, barrier);
      if (System::IsDelta(in_)) {
        CopyScalars(in_.factors, row, count, stage->factors, barrier);
      }
    } else {
      CopyStage(maps_.keys, maps_.x, row, stage, barrier);
      if (!System::IsDelta(in_)) {
        CopyScalars(in_.column_scale, row, count, stage->column_scale, barrier);
      }
    }
    if (segments_ != nullptr) {
      BulkCopyBytes(segments_ + row, 4 * count, stage->segments, barrier);
    }
  }
  // Arrays of scalars that come with a tile.
  __device__ __forceinline__ uint32_t NumScalars(bool column_pass) const {
    const uint32_t segments = segments_ == nullptr ? 0 : 1;
    if (System::IsDelta(in_)) return segments + (column_pass ? 3 : 0);
    return segments + (column_pass ? 2 : 1);
  }
  __device__ __forceinline__ void CopyStage(const TensorMap& scored,
                                            const TensorMap& weighed, int row,
                                            Stage* stage,
                                            PhaseBarrier* barrier) {
    BulkCopyTile<StreamedTile>(scored, row, h_, b_, stage->scored, barrier);
    BulkCopyTile<StreamedTile>(weighed, row, h_, b_, stage->weighed, barrier);
  }
  __device__ __forceinline__ void CopyScalars(const float* per_token, int row,
                                              uint32_t count, float* target,
                                              PhaseBarrier* barrier) {
    BulkCopyBytes(per_token + row0_ + row, 4 * count, target, barrier);
  }

  // Own rows of the second pass in the place of the first pass's.
  __device__ __forceinline__ void ReplaceOwn() {
    __syncthreads();  // all warps have done with them
    if (threadIdx.x == 0) {
      ReportAndExpect(&m_.own,
                      (System::IsDelta(in_) ? 2 : 1) * OwnTile::kBytes);
      if (System::IsDelta(in_)) CopyOwn(m_.scored, maps_.queries);
      CopyOwn(m_.weighed, maps_.y);
    }
    __syncwarp();
  }
  __device__ __forceinline__ void AwaitOwn() {
    AwaitPhase(&m_.own, own_phase_ % 2);
    ++own_phase_;
  }

  __device__ __forceinline__ Stage& StageOf(int use) {
    return m_.stages[use % kNumStages];
  }
  __device__ __forceinline__ void AwaitCopies(int use) {
    AwaitPhase(m_.full + use % kNumStages, use / kNumStages % 2);
  }
  // This warp has done with a tile.
  __device__ __forceinline__ void Free(int use) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) Report(m_.empty + use % kNumStages);
  }

  // Tiles `first_use` on of the sequence of both passes; the first row of the
  // first is `begin`.
  template <bool kColumnPass>
  __device__ __forceinline__ void Pass(int first_use, int begin, int tiles) {
    LoadOwn();
    const int last = first_use + tiles - 1;
    AwaitCopies(first_use);
    BeginProducts();
    StartProducts(StageOf(first_use));
    CommitProducts();
    int row = begin;
    for (int use = first_use; use < last; ++use, row += kStreamed) {
      FinishProducts();
      if (threadIdx.x == 0) Produce(use + kLead);
      MakeGradients<kColumnPass>(row, StageOf(use));
      AwaitCopies(use + 1);
      BeginProducts();
      AddProducts(StageOf(use));
      CommitProducts();
      StartProducts(StageOf(use + 1));
      CommitProducts();
      // Nothing is lost: the products are waited for next. Sums under way from
      // one turn of the loop to the next would be moved by the compiler.
      WaitForProducts<1>();
      HoldAccumulators(sums_[0]);
      Free(use);
    }
    FinishProducts();
    if (threadIdx.x == 0) Produce(last + kLead);
    MakeGradients<kColumnPass>(row, StageOf(last));
    BeginProducts();
    AddProducts(StageOf(last));
    CommitProducts();
    FinishProducts();
    Free(last);
  }

  __device__ __forceinline__ void LoadOwn() {
    AwaitOwn();
    if constexpr (kScoredInRegisters) {
#pragma unroll
      for (int k = 0; k < kSlices; ++k) {
        BFloat16Products::LoadLeft<OwnTile>(
            Elements(m_.scored), 16 * (threadIdx.x / 32), 16 * k, &scored_[k]);
      }
    }
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

  // Starts S and the products with X or Y of a tile.
  __device__ __forceinline__ void StartProducts(const Stage& stage) {
#pragma unroll
    for (int k = 0; k < kSlices; ++k) {
      const uint64_t b = Streamed(stage.scored, k);
      if (kScoredInRegisters) {
        MultiplyWarpgroup</*kColumns=*/false>(scores_[0], scored_[k].x, b,
                                              k > 0);
      } else {
        MultiplyWarpgroup(scores_[0], Own(m_.scored, k), b, k > 0);
      }
    }
#pragma unroll
    for (int k = 0; k < kSlices; ++k) {
      MultiplyWarpgroup(pair_products_[0], Own(m_.weighed, k),
                        Streamed(stage.weighed, k), k > 0);
    }
  }
  // Step k of the warpgroup's own rows and of streamed rows.
  __device__ __forceinline__ uint64_t Own(const char* tile, int k) const {
    return RowsOperand<OwnTile>(Elements(tile), 64 * group_of_warps_, 16 * k);
  }
  __device__ __forceinline__ static uint64_t Streamed(const char* tile, int k) {
    return RowsOperand<StreamedTile>(Elements(tile), 0, 16 * k);
  }

  // d_scores of a tile, as left operands.
  template <bool kColumnPass>
  __device__ __forceinline__ void MakeGradients(int row, const Stage& stage) {
    const int group_begin = first_ + 64 * group_of_warps_;
    const bool on_diagonal =
        kColumnPass ? row < group_begin + 64 : row + kStreamed > group_begin;
    bool crosses = false;
    if (segments_ != nullptr) {
      const int last_row = min(kStreamed, in_.seq_len - row) - 1;
      crosses = kColumnPass ? m_.segments[0] != stage.segments[last_row]
                            : stage.segments[0] !=
                                  m_.segments[this->OwnEnd() - 1 - first_];
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

  const GradientMaps& maps_;
  const int group_of_warps_ = Uniform(threadIdx.x / 128);
  int column_begin_, column_tiles_;  // first row and tiles of the passes
  int row_begin_, row_tiles_;
  int own_phase_ = 0;
  BFloat16Products::Left scored_[kSlices];  // own rows, if in registers
  float scores_[1][kGroups][4];
  float pair_products_[1][kGroups][4];
  BFloat16Products::Left d_scores_[kStreamed / 16];
};

template <int kDim, typename System>
__global__ void __launch_bounds__(
    WarpgroupGradientMemory<kDim>::kThreads,
    WarpgroupGradientShape<kDim>::kBlocksOfMultiprocessor)
    WarpgroupGradientsKernel(const __grid_constant__ AdjointArguments in,
                             const __grid_constant__ GradientMaps maps) {
  using Memory = WarpgroupGradientMemory<kDim>;
  extern __shared__ __align__(1024) char shared[];
  const int pair = blockIdx.y;
  const int b = pair / in.num_heads;
  const int h = pair % in.num_heads;
  if (!System::IsDelta(in) && blockIdx.x == 0 && b == 0 && threadIdx.x < 32) {
    AddLogLambdaGradient(in, h);
  }
  WarpgroupGradients<kDim, System>(in, maps, b, h, blockIdx.x * Memory::kRows,
                                   reinterpret_cast<Memory*>(shared))
      .Run();
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_WARPGROUP_GRADIENTS_CUH_
