// SPDX-License-Identifier: Apache-2.0
//
// gradient_rows.cuh with products of warpgroups (warpgroup.cuh), for bf16 on
// sm_90a, each of 64 own rows. The tiles of both passes are one sequence, which
// the copy engine brings into a ring (bulk_copy.cuh) once all warps have done
// with a stage. Lanes of four warps start the copies of a tile, a part each:
// one that started all would be late at every product. Per warpgroup and tile
// t:
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
  static constexpr bool kOwnByFragments = true;
  // Of stages: copies have arrived; all warps have left.
  PhaseBarrier full[WarpgroupGradientShape<kDim>::kStages];
  PhaseBarrier empty[WarpgroupGradientShape<kDim>::kStages];
  PhaseBarrier own;          // own rows have arrived
  PhaseBarrier own_free;     // KRR: all warps have done with X of the own rows
  PhaseBarrier own_scalars;  // KRR: the own rows' scalars have arrived
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
    int begin, end;
    this->template Range<true>(&begin, &end);  // from the first own row on
    column_tiles_ = Uniform((end - first_ + kStreamed - 1) / kStreamed);
    this->template Range<false>(&begin, &end);
    row_begin_ = Uniform(begin);
    all_tiles_ =
        Uniform(column_tiles_ + (end - begin + kStreamed - 1) / kStreamed);
  }

  __device__ void Run() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < kNumStages; ++s) {
        InitBarrier(m_.full + s, 1);
        InitBarrier(m_.empty + s, kThreads / 32);
      }
      InitBarrier(&m_.own, 1);
      InitBarrier(&m_.own_free, kThreads / 32);
      InitBarrier(&m_.own_scalars, 1);
      ShowBarriersToCopies();
    }
    __syncthreads();
    CopyOwn();
    Produce(0, {});
    Produce(1, Place().Next());
    if (System::IsDelta(in_)) {
      this->LoadOwnScalars();
      SetScaleOfStages();
      __syncthreads();
    } else {
      AwaitPhase(&m_.own_scalars, 0);
    }
    this->ClearSums();
    Pass<true>(first_, 0, column_tiles_);
    this->FinishColumns();
    if (System::IsDelta(in_)) ReplaceOwn();
    Pass<false>(row_begin_, column_tiles_, all_tiles_);
    __syncthreads();  // all warps have done with the own rows
    this->FinishRows();
    StoreQueries();
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
  using Base::own_row_;
  using Base::row0_;
  using Base::segments_;
  using Base::sums_;
  using typename Base::Element;
  using typename Base::OwnTile;
  using typename Base::Stage;
  using typename Base::StreamedTile;
  static constexpr int kNumStages = Base::kStages;
  static_assert(kNumStages > 2, "copies are started two tiles ahead");
  static constexpr int kSlices = kDim / 16;  // steps of k in a row
  static constexpr bool kScoredInRegisters =
      WarpgroupGradientShape<kDim>::kScoredInRegisters;

  // The compiler sees that a value is the same in all lanes: products may not
  // begin where lanes could part.
  __device__ __forceinline__ static int Uniform(int x) {
    return __shfl_sync(0xffffffffu, x, 0);
  }

  // A place in the ring, and the parity of the phase that a tile there is in.
  struct Place {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ Place Next() const {
      const bool wraps = stage + 1 == kNumStages;
      return {wraps ? 0 : stage + 1, wraps ? parity ^ 1 : parity};
    }
  };

  // What this thread does of the copies of a tile: lane 0 of a warp a job, the
  // warps of a warpgroup few.
  enum Job { kScoredRows, kWeighedRows, kScalars, kSegments, kNone };
  __device__ __forceinline__ static int JobOfThread() {
    if (threadIdx.x % 32 != 0) return kNone;
    const int warp = threadIdx.x / 32;
    if (kThreads == 128) return warp;
    return warp % 4 < 2 ? warp % 4 * 2 + warp / 4 : kNone;
  }

  // Each of Delta's keys has the same scale, which no copy writes.
  __device__ __forceinline__ void SetScaleOfStages() {
    if (threadIdx.x >= kStreamed) return;
#pragma unroll
    for (int s = 0; s < kNumStages; ++s) {
      m_.stages[s].exponents[threadIdx.x] = kLog2E * in_.scale;
    }
  }

  __device__ __forceinline__ void CopyOwn() {
    if (job_ == kScoredRows) {
      ReportAndExpect(&m_.own, 2 * OwnTile::kBytes);
      CopyOwnRows(maps_.keys, m_.scored);
    } else if (job_ == kWeighedRows) {
      CopyOwnRows(maps_.x, m_.weighed);
    } else if (job_ == kScalars && !System::IsDelta(in_)) {
      CopyOwnScalars();
    }
  }
  // KRR: what LoadOwnScalars does, without a wait.
  __device__ __forceinline__ void CopyOwnScalars() {
    const uint32_t count = min(Base::kRows, in_.seq_len - first_);
    for (uint32_t i = count; i < Base::kRows; ++i) {
      m_.column_scale[i] = m_.minus_lse[i] = m_.minus_delta[i] = 0;
      m_.segments[i] = -1;
    }
    PhaseBarrier* barrier = &m_.own_scalars;
    ReportAndExpect(barrier, 4 * count * (segments_ == nullptr ? 3 : 4));
    const auto copy = [&](const float* per_token, float* target) {
      BulkCopyBytes(per_token + row0_ + first_, 4 * count, target, barrier);
    };
    copy(in_.column_scale, m_.column_scale);
    copy(in_.minus_lse, m_.minus_lse);
    copy(in_.minus_delta, m_.minus_delta);
    if (segments_ != nullptr) {
      BulkCopyBytes(segments_ + first_, 4 * count, m_.segments, barrier);
    }
  }
  __device__ __forceinline__ void CopyOwnRows(const TensorMap& map,
                                              char* tile) {
    BulkCopyTile<OwnTile>(map, first_, h_, b_, tile, &m_.own);
  }

  // Starts the copies of tile `use` of both passes to its place, once all warps
  // have left the stage.
  __device__ __forceinline__ void Produce(int use, const Place& place) {
    if (job_ == kNone || use >= all_tiles_) return;
    const bool column_pass = use < column_tiles_;
    const int row = column_pass
                        ? first_ + use * kStreamed
                        : row_begin_ + (use - column_tiles_) * kStreamed;
    Stage* stage = m_.stages + place.stage;
    PhaseBarrier* barrier = m_.full + place.stage;
    // Waiting for the phase before a barrier's first returns at once.
    AwaitPhase(m_.empty + place.stage, place.parity ^ 1);
    if (job_ <= kWeighedRows) {
      if (job_ == kScoredRows) {
        // By the lane that reports, or nobody need see it.
        ClearBeyondSequence(row, stage);
        ReportAndExpect(barrier, 2 * StreamedTile::kBytes +
                                     4 * Count(row) * NumScalars(column_pass));
      }
      const TensorMap* map = job_ == kScoredRows
                                 ? (column_pass ? &maps_.queries : &maps_.keys)
                                 : (column_pass ? &maps_.y : &maps_.x);
      char* tile = job_ == kScoredRows ? stage->scored : stage->weighed;
      BulkCopyTile<StreamedTile>(*map, row, h_, b_, tile, barrier);
    } else if (job_ == kScalars) {
      ProduceScalars(column_pass, row, stage, barrier);
    } else if (segments_ != nullptr) {
      BulkCopyBytes(segments_ + row, 4 * Count(row), stage->segments, barrier);
    }
  }
  // Rows beyond the sequence are zeros and must not become NaN.
  __device__ __forceinline__ void ClearBeyondSequence(int row, Stage* stage) {
    for (uint32_t i = Count(row); i < kStreamed; ++i) {
      stage->minus_lse[i] = stage->minus_delta[i] = stage->factors[i] = 0;
      if (!System::IsDelta(in_)) stage->exponents[i] = 0;
    }
  }
  __device__ __forceinline__ void ProduceScalars(bool column_pass, int row,
                                                 Stage* stage,
                                                 PhaseBarrier* barrier) {
    if (column_pass) {
      CopyScalars(in_.minus_lse, row, stage->minus_lse, barrier);
      CopyScalars(in_.minus_delta, row, stage->minus_delta, barrier);
      if (System::IsDelta(in_)) {
        CopyScalars(in_.factors, row, stage->factors, barrier);
      }
    } else if (!System::IsDelta(in_)) {
      CopyScalars(in_.key_exponents, row, stage->exponents, barrier);
    }
  }
  // Rows of a streamed tile that are in the sequence.
  __device__ __forceinline__ uint32_t Count(int row) const {
    return min(kStreamed, in_.seq_len - row);
  }
  // Arrays of scalars that come with a tile.
  __device__ __forceinline__ uint32_t NumScalars(bool column_pass) const {
    const uint32_t segments = segments_ == nullptr ? 0 : 1;
    if (System::IsDelta(in_)) return segments + (column_pass ? 3 : 0);
    return segments + (column_pass ? 2 : 1);
  }
  __device__ __forceinline__ void CopyScalars(const float* per_token, int row,
                                              float* target,
                                              PhaseBarrier* barrier) {
    BulkCopyBytes(per_token + row0_ + row, 4 * Count(row), target, barrier);
  }

  // KRR: Y of the own rows in the place of X, as soon as the last products with
  // X are done. The queries are the keys.
  __device__ __forceinline__ void ReplaceX() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) Report(&m_.own_free);
    if (job_ != kWeighedRows) return;
    AwaitPhase(&m_.own_free, 0);
    ReportAndExpect(&m_.own, OwnTile::kBytes);
    CopyOwnRows(maps_.y, m_.weighed);
  }
  // Delta: own rows of the second pass in the place of the first pass's.
  __device__ __forceinline__ void ReplaceOwn() {
    __syncthreads();  // all warps have done with them
    if (threadIdx.x == 0) {
      ReportAndExpect(&m_.own, 2 * OwnTile::kBytes);
      CopyOwnRows(maps_.queries, m_.scored);
      CopyOwnRows(maps_.y, m_.weighed);
    }
    __syncwarp();
  }

  __device__ __forceinline__ Stage& StageAt(const Place& place) {
    return m_.stages[place.stage];
  }
  __device__ __forceinline__ void AwaitCopies(const Place& place) {
    AwaitPhase(m_.full + place.stage, place.parity);
  }
  // This warp has done with a tile.
  __device__ __forceinline__ void Free(const Place& place) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) Report(m_.empty + place.stage);
  }

  // Tiles from `use` to before `end` of the sequence of both passes; `row` is
  // the first row of the first.
  template <bool kColumnPass>
  __device__ __forceinline__ void Pass(int row, int use, int end) {
    AwaitPhase(&m_.own, kColumnPass ? 0 : 1);
    if constexpr (kScoredInRegisters) this->LoadOwnFragments(scored_);
    AwaitCopies(reading_);
    BeginProducts();
    StartProducts(StageAt(reading_));
    CommitProducts();
    for (; use + 1 < end; ++use, row += kStreamed) {
      const Place place = reading_;
      reading_ = place.Next();
      FinishProducts();
      Produce(use + 2, reading_.Next());
      MakeGradients<kColumnPass>(row, StageAt(place));
      AwaitCopies(reading_);
      BeginProducts();
      AddProducts(StageAt(place));
      CommitProducts();
      StartProducts(StageAt(reading_));
      CommitProducts();
      // Nothing is lost: the products are waited for next. Sums under way from
      // one turn of the loop to the next would be moved by the compiler.
      WaitForProducts<1>();
      HoldAccumulators(sums_[0]);
      Free(place);
    }
    const Place last = reading_;
    reading_ = last.Next();
    FinishProducts();
    if (kColumnPass && !System::IsDelta(in_)) ReplaceX();
    Produce(use + 2, reading_.Next());
    MakeGradients<kColumnPass>(row, StageAt(last));
    BeginProducts();
    AddProducts(StageAt(last));
    CommitProducts();
    FinishProducts();
    Free(last);
  }

  // Writes d_queries by whole vectors, each warp its rows through shared
  // memory.
  __device__ __forceinline__ void StoreQueries() {
    Element* const tile = reinterpret_cast<Element*>(m_.weighed);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kSlices; ++k) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums_[0][2 * k][e] *= kLn2;
        sums_[0][2 * k + 1][e] *= kLn2;
      }
      const BFloat16Products::Left rows = BFloat16Products::FromAccumulators(
          sums_[0][2 * k], sums_[0][2 * k + 1]);
      StoreMatrix4(
          SharedAddress(tile + OwnTile::Offset(own_row_ + lane % 16,
                                               16 * k + lane / 16 * 8)),
          rows.x);
    }
    StoreWarpRows<OwnTile>(tile, own_row_, in_.d_queries, b_, h_, first_,
                           in_.seq_len, in_.head_dim);
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
  int column_tiles_, all_tiles_;  // of the first pass, of both
  int row_begin_;                 // first row of the second
  const int job_ = JobOfThread();
  Place reading_;
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
