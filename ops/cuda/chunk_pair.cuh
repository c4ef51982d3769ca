// SPDX-License-Identifier: Apache-2.0
//
// The kernels of a pair of chunks (chunk_arguments.h). A block of threads owns
// some rows (or columns) of one head, 16 a warp, and streams tiles of the other
// side, the copies of the next under way while one is computed.
// The warps multiply each its rows or, with WarpgroupProducts, all together.
// Only tiles with a visible pair are read, and pairs are masked only in tiles
// with one that is not visible. What a block writes is its own, so nothing is
// added in memory by two, and every sum has a fixed order.

#ifndef CUBIT_OPS_CUDA_CHUNK_PAIR_CUH_
#define CUBIT_OPS_CUDA_CHUNK_PAIR_CUH_

#include <cmath>
#include <cstdint>

#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_mask.h"
#include "ops/cuda/chunk_tiles.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/pairs.cuh"
#include "ops/cuda/products.cuh"
#include "ops/cuda/tile.cuh"
#include "ops/cuda/warp_products.cuh"

namespace cubit {
namespace cuda {

// Blocks of threads, as measured (docs/decisions/0032): two warpgroups with
// long rows share what is streamed, which takes 5% to 13% less than two blocks
// of one; with short rows three blocks of one fit a multiprocessor.
template <typename Products, int kDim>
struct ChunkShape {
  static constexpr int kWarpgroups =
      kByWarpgroup<Products> && kDim > 64 ? 2 : 1;
  static constexpr int kRows = kWarpgroups * kChunkRows;  // own rows
  static constexpr int kThreads = kWarpgroups * kChunkThreads;
  static constexpr int kStages = kWarpgroups + 1;
  static constexpr int kBlocksOfMultiprocessor =
      kByWarpgroup<Products> && kDim <= 64 ? 3 : 1;
};

// Shared memory: the own side's tiles and stages of the other's. A pass that
// forms no y_i . x_j has no own tile of y or x (`kWeighsOwn`).
template <typename ProductsType, int kDim, int kStreamedRows, bool kWeighsOwn>
struct ChunkMemory {
  using Products = ProductsType;
  using Element = typename Products::Element;
  using Shape = ChunkShape<Products, kDim>;
  static constexpr int kStreamed = kStreamedRows;
  using OwnTile = Tile<Element, Shape::kRows, kDim>;
  using StreamedTile = Tile<Element, kStreamed, kDim>;

  struct Stage {
    alignas(1024) char scored[StreamedTile::kBytes];   // a or b
    alignas(1024) char weighed[StreamedTile::kBytes];  // y or x
    float scale[kStreamed];                            // c, of columns
    float factor[kStreamed];                           // f, lse, delta: of rows
    float lse[kStreamed];
    float delta[kStreamed];
  };
  alignas(1024) char scored[OwnTile::kBytes];
  alignas(1024) char weighed[kWeighsOwn ? OwnTile::kBytes : 1];
  Stage stages[Shape::kStages];
};

// What the three passes have in common: the block's place and its threads'.
template <typename MemoryType, int kDimOfHead>
class ChunkPass {
 public:
  using Memory = MemoryType;
  using Stage = typename Memory::Stage;
  using Element = typename Memory::Element;
  using OwnTile = typename Memory::OwnTile;
  using StreamedTile = typename Memory::StreamedTile;
  static constexpr int kDim = kDimOfHead;
  static constexpr int kStreamed = Memory::kStreamed;
  static constexpr int kOwnRows = Memory::Shape::kRows;
  static constexpr int kThreads = Memory::Shape::kThreads;
  static constexpr int kBlocksOfMultiprocessor =
      Memory::Shape::kBlocksOfMultiprocessor;
  // Where there is room for them.
  static constexpr bool kScoredInRegisters =
      kByWarpgroup<typename Memory::Products> && kDim > 64;

 protected:
  __device__ __forceinline__ ChunkPass(const ChunkArguments& in, Memory* m)
      : in_(in),
        m_(*m),
        pair_(blockIdx.y),
        b_(blockIdx.y / in.num_heads),
        h_(blockIdx.y % in.num_heads),
        first_(blockIdx.x * kOwnRows),
        mask_(MaskOf(in, b_)),
        row0_(static_cast<int64_t>(blockIdx.y) * in.num_rows) {}

  // Row or column of a lane's half of the warp's 16.
  __device__ __forceinline__ int Own(int half) const {
    return first_ + own_row_ + group_ + 8 * half;
  }

  template <typename TileType>
  __device__ __forceinline__ void Load(const ChunkHeads& heads, int row,
                                       int seq_len, char* tile) {
    CopyChunkRows<TileType, kThreads>(heads, b_, h_, row, seq_len, in_.head_dim,
                                      reinterpret_cast<Element*>(tile));
  }
  __device__ __forceinline__ static const Element* Elements(const char* tile) {
    return reinterpret_cast<const Element*>(tile);
  }

  // weights = own scored rows times the transpose of the stage's; with kBoth
  // products = the same of the weighed rows.
  template <bool kBoth>
  __device__ __forceinline__ void Multiply(
      const Stage& stage, float (&weights)[kStreamed / 8][4],
      float (&products)[kStreamed / 8][4]) {
    using Products = typename Memory::Products;
    if constexpr (kByWarpgroup<Products>) {
      HoldAccumulators(weights);
      if (kBoth) HoldAccumulators(products);
      FenceProducts();
      if constexpr (kScoredInRegisters) {
        StartTransposed<OwnTile, StreamedTile>(scored_, Elements(stage.scored),
                                               weights);
      } else {
        StartTransposed<OwnTile, StreamedTile>(Elements(m_.scored), own_group_,
                                               Elements(stage.scored), weights);
      }
      if (kBoth) {
        StartTransposed<OwnTile, StreamedTile>(Elements(m_.weighed), own_group_,
                                               Elements(stage.weighed),
                                               products);
      }
      CommitProducts();
      WaitForProducts<0>();
      HoldAccumulators(weights);
      if (kBoth) HoldAccumulators(products);
    } else {
      MultiplyTransposed<Products, OwnTile, StreamedTile>(
          Elements(m_.scored), own_row_, Elements(stage.scored), weights);
      if (kBoth) {
        MultiplyTransposed<Products, OwnTile, StreamedTile>(
            Elements(m_.weighed), own_row_, Elements(stage.weighed), products);
      }
    }
  }

  // load(first streamed row, stage) and compute(first streamed row, stage) for
  // the tiles of `range`, in order.
  template <typename LoadStage, typename Compute>
  __device__ __forceinline__ void ForEachTile(ChunkRange range,
                                              const LoadStage& load,
                                              const Compute& compute) {
    constexpr int kAhead = Memory::Shape::kStages - 1;  // tiles under way
    const int first = range.begin / kStreamed * kStreamed;
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const int row = first + n * kStreamed;
      if (row < range.end) load(row, &m_.stages[n]);
      CommitCopies();
    }
    int stage = 0;
    int free = kAhead;  // the stage that is free once all have come here
    for (int row = first; row < range.end; row += kStreamed) {
      // The tile has arrived, and everyone is done with the one before.
      WaitForCopies<kAhead - 1>();
      ShareTiles<typename Memory::Products>();
      if (kScoredInRegisters && row == first) {
        scored_.Load(Elements(m_.scored), own_row_);
      }
      const int next = row + kAhead * kStreamed;
      if (next < range.end) load(next, &m_.stages[free]);
      CommitCopies();
      compute(row, m_.stages[stage]);
      free = stage;
      stage = stage == kAhead ? 0 : stage + 1;
    }
  }

  const ChunkArguments& in_;
  Memory& m_;
  const int pair_, b_, h_;
  const int first_;
  const ChunkMaskView mask_;
  const int64_t row0_;  // of [B, H, num_rows]
  OwnOperand<typename Memory::Products, OwnTile> scored_;  // if in registers
  const int group_ = threadIdx.x % 32 / 4;
  const int quad_ = threadIdx.x % 4;
  const int own_row_ = threadIdx.x / 32 * 16;  // of the warp, in the block
  // First row of the warpgroup; the compiler sees that all lanes have the same.
  const int own_group_ =
      __shfl_sync(0xffffffffu, threadIdx.x / kChunkThreads, 0) * kChunkRows;
};

// The other side of a block: what some of its rows (columns) see, and what all
// of them do, which begins no earlier and ends no later.
struct BlockRanges {
  ChunkRange some;
  ChunkRange all;

  // The compiler sees that all lanes have the same tiles.
  __device__ __forceinline__ BlockRanges(ChunkRange first, ChunkRange last) {
    some = {Uniform(first.begin), Uniform(last.end)};
    all = {Uniform(last.begin), Uniform(first.end)};
  }
  __device__ __forceinline__ bool empty() const {
    return some.begin >= some.end;
  }
  // Whether a pair in [begin, end) of the other side is not visible.
  __device__ __forceinline__ bool NeedsMask(int begin, int end) const {
    return begin < all.begin || end > all.end;
  }

 private:
  __device__ __forceinline__ static int Uniform(int x) {
    return __shfl_sync(0xffffffffu, x, 0);
  }
};
// Of `count` rows (columns) of the own side.
__device__ __forceinline__ BlockRanges ColumnsOfBlock(const ChunkMaskView& mask,
                                                      int first, int count) {
  const int last = min(first + count, mask.num_rows) - 1;
  return {VisibleColumns(mask, first), VisibleColumns(mask, last)};
}
__device__ __forceinline__ BlockRanges RowsOfBlock(const ChunkMaskView& mask,
                                                   int first, int count) {
  const int last = min(first + count, mask.num_columns) - 1;
  return {VisibleRows(mask, first), VisibleRows(mask, last)};
}
__device__ __forceinline__ ChunkRange ColumnsOf(const ChunkMaskView& mask,
                                                int row) {
  return row < mask.num_rows ? VisibleColumns(mask, row) : ChunkRange{0, 0};
}
__device__ __forceinline__ ChunkRange RowsOf(const ChunkMaskView& mask,
                                             int column) {
  return column < mask.num_columns ? VisibleRows(mask, column)
                                   : ChunkRange{0, 0};
}
__device__ __forceinline__ bool IsInside(const ChunkRange& range, int index) {
  return index >= range.begin && index < range.end;
}

// --- Running sums of a lane's two rows -------------------------------------

template <int kDim>
struct RunningRows {
  float maximum[2];
  double sum[2];  // the lane's share; in memory, lane 0 of a quad has it
  float weighted[kDim / 8][4];
  bool keeps_max;

  __device__ __forceinline__ void Load(const ChunkArguments& in, int b, int h,
                                       int64_t row0, int half, int row) {
    const bool valid = row < in.num_rows;
    maximum[half] = valid ? in.row_max[row0 + row] : -INFINITY;
    sum[half] = valid && threadIdx.x % 4 == 0 ? in.row_sum[row0 + row] : 0.0;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      weighted[n][2 * half] = weighted[n][2 * half + 1] = 0;
    }
    if (!valid) return;
    const float* source = static_cast<const float*>(in.weighted.data) +
                          ChunkRowOffset(in.weighted, b, h, row);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const float2 pair = LoadPairBefore(source, n * 8 + threadIdx.x % 4 * 2,
                                         in.head_dim, in.weighted.vectors);
      weighted[n][2 * half] = pair.x;
      weighted[n][2 * half + 1] = pair.y;
    }
  }

  // Scores s of rows and streamed columns [first, ...) become weights: the
  // maximum is raised where it must be, what was summed is rescaled, and the
  // new weights are added to `sum`. kMasked: some pair is not visible.
  template <int kColumns, bool kMasked>
  __device__ __forceinline__ void Weigh(const ChunkRange (&ranges)[2],
                                        int first, const float* scale,
                                        float (&s)[kColumns / 8][4]) {
    if (!keeps_max) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = maximum[half];
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const int column = n * 8 + threadIdx.x % 4 * 2 + side;
            if (kMasked && !IsInside(ranges[half], first + column)) continue;
            largest = fmaxf(largest, s[n][2 * half + side] * scale[column]);
          }
        }
        Raise(half, QuadMax(largest));
      }
    }
    // A row that has met no column yet has weights of 0, not NaN.
    float shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      shift[half] = maximum[half] == -INFINITY ? 0.0f : kLog2E * maximum[half];
    }
    float added[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      const int pair = n * 8 + threadIdx.x % 4 * 2;
      const float2 factors = LoadPair(scale + pair);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float factor = kLog2E * (i % 2 == 0 ? factors.x : factors.y);
        float weight = Exp2(fmaf(s[n][i], factor, -shift[i / 2]));
        if (kMasked && !IsInside(ranges[i / 2], first + pair + i % 2)) {
          weight = 0;
        }
        s[n][i] = weight;
        added[i / 2] += weight;
      }
    }
    sum[0] += static_cast<double>(added[0]);
    sum[1] += static_cast<double>(added[1]);
  }

  __device__ __forceinline__ void Raise(int half, float largest) {
    if (largest == maximum[half]) return;
    const float rescale = ChunkExp(maximum[half] - largest);
    maximum[half] = largest;
    sum[half] *= static_cast<double>(rescale);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      weighted[n][2 * half] *= rescale;
      weighted[n][2 * half + 1] *= rescale;
    }
  }

  // Called by whole quads.
  __device__ __forceinline__ void Store(const ChunkArguments& in, int b, int h,
                                        int64_t row0, int half, int row) {
    const double total = QuadSum(sum[half]);
    if (row >= in.num_rows) return;
    if (threadIdx.x % 4 == 0) {
      in.row_max[row0 + row] = maximum[half];
      in.row_sum[row0 + row] = total;
    }
    float* target = static_cast<float*>(in.weighted.data) +
                    ChunkRowOffset(in.weighted, b, h, row);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      StorePairBefore(target, n * 8 + threadIdx.x % 4 * 2, in.head_dim,
                      in.weighted.vectors, weighted[n][2 * half],
                      weighted[n][2 * half + 1]);
    }
  }
};

// --- Forward ----------------------------------------------------------------

template <typename Products, int kDim>
using ChunkForwardMemory =
    ChunkMemory<Products, kDim,
                sizeof(typename Products::Element) == 2 ? 64 : 32, false>;

template <typename Products, int kDim>
class ChunkForwardPass
    : public ChunkPass<ChunkForwardMemory<Products, kDim>, kDim> {
  using Base = ChunkPass<ChunkForwardMemory<Products, kDim>, kDim>;
  using Stage = typename Base::Stage;
  static constexpr int kStreamed = Base::kStreamed;

 public:
  __device__ __forceinline__ ChunkForwardPass(const ChunkArguments& in,
                                              typename Base::Memory* memory)
      : Base(in, memory) {}

  __device__ void Run() {
    if (blocks_.empty()) return;
    const ChunkArguments& in = this->in_;
    this->template Load<typename Base::OwnTile>(in.a, this->first_, in.num_rows,
                                                this->m_.scored);
    rows_.keeps_max = KeepsRowMax(in.row_scale, this->row0_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ranges_[half] = ColumnsOf(this->mask_, this->Own(half));
      rows_.Load(in, this->b_, this->h_, this->row0_, half, this->Own(half));
    }
    this->ForEachTile(
        blocks_.some,
        [this](int column, Stage* stage) { LoadStage(column, stage); },
        [this](int column, const Stage& stage) { Compute(column, stage); });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows_.Store(in, this->b_, this->h_, this->row0_, half, this->Own(half));
    }
  }

 private:
  __device__ __forceinline__ void LoadStage(int column, Stage* stage) {
    const ChunkArguments& in = this->in_;
    this->template Load<typename Base::StreamedTile>(
        in.b, column, in.num_columns, stage->scored);
    this->template Load<typename Base::StreamedTile>(
        in.x, column, in.num_columns, stage->weighed);
    const int i = threadIdx.x;
    if (i >= kStreamed) return;
    stage->scale[i] = column + i < in.num_columns
                          ? ColumnScale(in, this->pair_, column + i)
                          : 0.0f;
  }

  __device__ __forceinline__ void Compute(int column, const Stage& stage) {
    float weights[kStreamed / 8][4];
    this->template Multiply</*kBoth=*/false>(stage, weights, weights);
    if (blocks_.NeedsMask(column, column + kStreamed)) {
      rows_.template Weigh<kStreamed, true>(ranges_, column, stage.scale,
                                            weights);
    } else {
      rows_.template Weigh<kStreamed, false>(ranges_, column, stage.scale,
                                             weights);
    }
    MultiplyAdd<Products, typename Base::StreamedTile>(
        weights, this->Elements(stage.weighed), rows_.weighted);
  }

  const BlockRanges blocks_ =
      ColumnsOfBlock(this->mask_, this->first_, Base::kOwnRows);
  ChunkRange ranges_[2];
  RunningRows<kDim> rows_;
};

// --- Columns of the backward -------------------------------------------------

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

// --- Rows of the backward ----------------------------------------------------

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
        [this](int column, Stage* stage) { LoadStage(column, stage); },
        [this](int column, const Stage& stage) { Compute(column, stage); });
    Store();
  }

 private:
  __device__ __forceinline__ void LoadStage(int column, Stage* stage) {
    const ChunkArguments& in = this->in_;
    this->template Load<typename Base::StreamedTile>(
        in.b, column, in.num_columns, stage->scored);
    this->template Load<typename Base::StreamedTile>(
        in.x, column, in.num_columns, stage->weighed);
    const int i = threadIdx.x;
    if (i >= kStreamed) return;
    stage->scale[i] = column + i < in.num_columns
                          ? ColumnScale(in, this->pair_, column + i)
                          : 0.0f;
  }

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

// A pass as a kernel; grid (blocks of own rows, B H).
template <typename Pass>
__global__ void __launch_bounds__(Pass::kThreads, Pass::kBlocksOfMultiprocessor)
    ChunkPassKernel(const __grid_constant__ ChunkArguments in) {
  extern __shared__ __align__(1024) char shared[];
  Pass(in, reinterpret_cast<typename Pass::Memory*>(shared)).Run();
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_PAIR_CUH_
