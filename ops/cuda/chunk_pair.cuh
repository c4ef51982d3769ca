// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of a pair of chunks (chunk_arguments.h) have in common: the
// forward's is in chunk_pair_forward.cuh, the backward's two are in
// chunk_pair_backward.cuh. A block of threads owns some rows (or columns) of
// one head, 16 a warp, and streams tiles of the other side, the copies of the
// next under way while one is computed. The warps multiply each its rows or,
// with WarpgroupProducts, all together. Only tiles with a visible pair are
// read, and pairs are masked only in tiles with one that is not visible. What a
// block writes is its own, so nothing is added in memory by two, and every sum
// has a fixed order.

#ifndef CUBIT_OPS_CUDA_CHUNK_PAIR_CUH_
#define CUBIT_OPS_CUDA_CHUNK_PAIR_CUH_

#include <cstdint>

#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_mask.h"
#include "ops/cuda/chunk_tiles.cuh"
#include "ops/cuda/mma.cuh"
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

  // Starts the copies of columns [first, first + kStreamed) to a stage.
  __device__ __forceinline__ void LoadColumns(int first, Stage* stage) {
    Load<StreamedTile>(in_.b, first, in_.num_columns, stage->scored);
    Load<StreamedTile>(in_.x, first, in_.num_columns, stage->weighed);
    const int i = threadIdx.x;
    if (i >= kStreamed) return;
    stage->scale[i] =
        first + i < in_.num_columns ? ColumnScale(in_, pair_, first + i) : 0.0f;
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
