// SPDX-License-Identifier: Apache-2.0
//
// The backward of a pair of chunks (chunk_pair.cuh): one kernel adds to the
// gradients of columns (of their values, of their scores, of both), one to
// those of rows.

#ifndef CUBIT_OPS_CUDA_CHUNK_PAIR_BACKWARD_CUH_
#define CUBIT_OPS_CUDA_CHUNK_PAIR_BACKWARD_CUH_

#include <cstdint>

#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_mask.h"
#include "ops/cuda/chunk_pair.cuh"
#include "ops/cuda/chunk_tiles.cuh"
#include "ops/cuda/pairs.cuh"
#include "ops/cuda/warp_products.cuh"

namespace cubit {
namespace cuda {

template <typename Products>
constexpr int kGradientStreamed = kByWarpgroup<Products> ? 64 : 32;

// Adds the accumulators of one row, times `factor`, to fp32 heads: two
// roundings, so that what is added does not depend on what is there.
template <int kDim>
__device__ __forceinline__ void AddToRow(float (&sums)[kDim / 8][4], int half,
                                         float factor, int head_dim,
                                         const ChunkHeads& heads,
                                         int64_t row_offset) {
  float* target = static_cast<float*>(heads.data) + row_offset;
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    const int column = n * 8 + threadIdx.x % 4 * 2;
    const float2 pair = LoadPairBefore(target, column, head_dim, heads.vectors);
    StorePairBefore(
        target, column, head_dim, heads.vectors,
        __fadd_rn(pair.x, __fmul_rn(factor, sums[n][2 * half])),
        __fadd_rn(pair.y, __fmul_rn(factor, sums[n][2 * half + 1])));
  }
}

template <typename Products, int kDim, bool kValues, bool kScores>
class ChunkColumnsPass
    : public ChunkPass<
          ChunkMemory<Products, kDim, kGradientStreamed<Products>, kScores>,
          kDim> {
  using Base = ChunkPass<
      ChunkMemory<Products, kDim, kGradientStreamed<Products>, kScores>, kDim>;
  using Stage = typename Base::Stage;
  static constexpr int kStreamed = Base::kStreamed;

 public:
  __device__ __forceinline__ ChunkColumnsPass(const ChunkArguments& in,
                                              typename Base::Memory* memory)
      : Base(in, memory) {}

  __device__ void Run() {
    if (blocks_.empty()) return;
    const ChunkArguments& in = this->in_;
    this->template Load<typename Base::OwnTile>(
        in.b, this->first_, in.num_columns, this->m_.scored);
    if (kScores) {
      this->template Load<typename Base::OwnTile>(
          in.x, this->first_, in.num_columns, this->m_.weighed);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = this->Own(half);
      ranges_[half] = RowsOf(this->mask_, column);
      scale_[half] = column < in.num_columns
                         ? kLog2E * ColumnScale(in, this->pair_, column)
                         : 0.0f;
    }
    SetZero(values_);
    SetZero(scores_);
    this->ForEachTile(
        blocks_.some, [this](int row, Stage* stage) { LoadStage(row, stage); },
        [this](int row, const Stage& stage) { Compute(row, stage); });
    Store();
  }

 private:
  __device__ __forceinline__ void LoadStage(int row, Stage* stage) {
    const ChunkArguments& in = this->in_;
    this->template Load<typename Base::StreamedTile>(in.a, row, in.num_rows,
                                                     stage->scored);
    this->template Load<typename Base::StreamedTile>(in.y, row, in.num_rows,
                                                     stage->weighed);
    const int i = threadIdx.x;
    if (i >= kStreamed) return;
    const bool valid = row + i < in.num_rows;
    stage->lse[i] = valid ? in.lse[this->row0_ + row + i] : 0.0f;
    stage->factor[i] =
        valid ? RowFactor(in, this->b_, this->h_, row + i) : 0.0f;
    if (kScores) {
      stage->delta[i] = valid ? in.delta[this->row0_ + row + i] : 0.0f;
    }
  }

  __device__ __forceinline__ void Compute(int row, const Stage& stage) {
    using OwnTile = typename Base::OwnTile;
    using StreamedTile = typename Base::StreamedTile;
    float weights[kStreamed / 8][4];
    float products[kStreamed / 8][4];
    this->template Multiply<kScores>(stage, weights, products);
    if (blocks_.NeedsMask(row, row + kStreamed)) {
      Weigh<true>(row, stage, weights, products);
    } else {
      Weigh<false>(row, stage, weights, products);
    }
    if (kValues) {
      MultiplyAdd<Products, StreamedTile>(
          weights, this->Elements(stage.weighed), values_);
    }
    if (kScores) {
      MultiplyAdd<Products, StreamedTile>(
          products, this->Elements(stage.scored), scores_);
    }
  }

  // Scores become f P, products with the own x dS.
  template <bool kMasked>
  __device__ __forceinline__ void Weigh(int row, const Stage& stage,
                                        float (&weights)[kStreamed / 8][4],
                                        float (&products)[kStreamed / 8][4]) {
#pragma unroll
    for (int n = 0; n < kStreamed / 8; ++n) {
      const int pair = n * 8 + this->quad_ * 2;
      const float2 lses = LoadPair(stage.lse + pair);
      const float2 factors = LoadPair(stage.factor + pair);
      const float2 deltas =
          kScores ? LoadPair(stage.delta + pair) : make_float2(0, 0);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float lse = e % 2 == 0 ? lses.x : lses.y;
        const float factor = e % 2 == 0 ? factors.x : factors.y;
        float p = Exp2(fmaf(weights[n][e], scale_[e / 2], -kLog2E * lse));
        if (kMasked && !IsInside(ranges_[e / 2], row + pair + e % 2)) p = 0;
        if (kScores) {
          // A product may be of rows that are not visible, but is finite.
          products[n][e] = p * fmaf(factor, products[n][e],
                                    e % 2 == 0 ? -deltas.x : -deltas.y);
        }
        weights[n][e] = factor * p;
      }
    }
  }

  __device__ __forceinline__ void Store() {
    const ChunkArguments& in = this->in_;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = this->Own(half);
      if (column >= in.num_columns) continue;
      if (kValues) {
        AddToRow<kDim>(values_, half, 1.0f, in.head_dim, in.d_values,
                       ChunkRowOffset(in.d_values, this->b_, this->h_, column));
      }
      if (kScores) {
        AddToRow<kDim>(
            scores_, half, in.column_factor, in.head_dim, in.d_columns,
            ChunkRowOffset(in.d_columns, this->b_, this->h_, column));
      }
    }
  }

  const BlockRanges blocks_ =
      RowsOfBlock(this->mask_, this->first_, Base::kOwnRows);
  ChunkRange ranges_[2];
  float scale_[2];  // times log2(e)
  float values_[kDim / 8][4];
  float scores_[kDim / 8][4];
};

template <typename Products, int kDim>
class ChunkRowsPass
    : public ChunkPass<
          ChunkMemory<Products, kDim, kGradientStreamed<Products>, true>,
          kDim> {
  using Base =
      ChunkPass<ChunkMemory<Products, kDim, kGradientStreamed<Products>, true>,
                kDim>;
  using Stage = typename Base::Stage;
  static constexpr int kStreamed = Base::kStreamed;

 public:
  __device__ __forceinline__ ChunkRowsPass(const ChunkArguments& in,
                                           typename Base::Memory* memory)
      : Base(in, memory) {}

  __device__ void Run() {
    if (blocks_.empty()) return;
    const ChunkArguments& in = this->in_;
    this->template Load<typename Base::OwnTile>(in.a, this->first_, in.num_rows,
                                                this->m_.scored);
    this->template Load<typename Base::OwnTile>(in.y, this->first_, in.num_rows,
                                                this->m_.weighed);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = this->Own(half);
      const bool valid = row < in.num_rows;
      ranges_[half] = ColumnsOf(this->mask_, row);
      lse_[half] = valid ? kLog2E * in.lse[this->row0_ + row] : 0.0f;
      delta_[half] = valid ? in.delta[this->row0_ + row] : 0.0f;
      factor_[half] = valid ? RowFactor(in, this->b_, this->h_, row) : 0.0f;
      row_sums_[half] = 0;
    }
    SetZero(sums_);
    this->ForEachTile(
        blocks_.some,
        [this](int column, Stage* stage) { this->LoadColumns(column, stage); },
        [this](int column, const Stage& stage) { Compute(column, stage); });
    Store();
  }

 private:
  __device__ __forceinline__ void Compute(int column, const Stage& stage) {
    using OwnTile = typename Base::OwnTile;
    using StreamedTile = typename Base::StreamedTile;
    float scores[kStreamed / 8][4];
    float products[kStreamed / 8][4];
    this->template Multiply</*kBoth=*/true>(stage, scores, products);
    if (blocks_.NeedsMask(column, column + kStreamed)) {
      Weigh<true>(column, stage, scores, products);
    } else {
      Weigh<false>(column, stage, scores, products);
    }
    MultiplyAdd<Products, StreamedTile>(scores, this->Elements(stage.scored),
                                        sums_);
  }

  // Scores become c dS; adds to the sums of dS.
  template <bool kMasked>
  __device__ __forceinline__ void Weigh(
      int column, const Stage& stage, float (&scores)[kStreamed / 8][4],
      const float (&products)[kStreamed / 8][4]) {
    float added[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < kStreamed / 8; ++n) {
      const int pair = n * 8 + this->quad_ * 2;
      const float2 scales = LoadPair(stage.scale + pair);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int half = e / 2;
        const float scale = e % 2 == 0 ? scales.x : scales.y;
        float d_score = Exp2(fmaf(scores[n][e], kLog2E * scale, -lse_[half])) *
                        fmaf(factor_[half], products[n][e], -delta_[half]);
        if (kMasked && !IsInside(ranges_[half], column + pair + e % 2)) {
          d_score = 0;
        }
        added[half] += d_score;
        scores[n][e] = scale * d_score;
      }
    }
    row_sums_[0] += static_cast<double>(added[0]);
    row_sums_[1] += static_cast<double>(added[1]);
  }

  __device__ __forceinline__ void Store() {
    const ChunkArguments& in = this->in_;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const double total = QuadSum(row_sums_[half]);
      const int row = this->Own(half);
      if (row >= in.num_rows) continue;
      if (in.row_sums != nullptr && this->quad_ == 0) {
        in.row_sums[this->row0_ + row] += total;
      }
      AddToRow<kDim>(sums_, half, 1.0f, in.head_dim, in.d_rows,
                     ChunkRowOffset(in.d_rows, this->b_, this->h_, row));
    }
  }

  const BlockRanges blocks_ =
      ColumnsOfBlock(this->mask_, this->first_, Base::kOwnRows);
  ChunkRange ranges_[2];
  float lse_[2];  // times log2(e)
  float delta_[2], factor_[2];
  double row_sums_[2];
  float sums_[kDim / 8][4];
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_PAIR_BACKWARD_CUH_
