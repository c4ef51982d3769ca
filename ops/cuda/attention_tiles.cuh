// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of softmax attention on tensor cores of sm_80 and newer have
// in common: one forward kernel (attention_forward.cuh) and two backward
// kernels (attention_backward.cuh), for head dims up to kDim, any lengths and
// masks.
//
// All three have the same shape. A block of threads holds `kRows` rows of one
// head (queries, or keys where d_k and d_v are made) and streams tiles of
// `kColumns` of the other side through shared memory, copies of the next tiles
// under way while one is computed. What a query sees is always one range of
// keys (key_ranges.cuh), so tiles outside the range are never loaded and only
// those at its ends are masked. Nothing is summed across blocks: no atomics,
// and equal bits in every run.

#ifndef CUBIT_OPS_CUDA_ATTENTION_TILES_CUH_
#define CUBIT_OPS_CUDA_ATTENTION_TILES_CUH_

#include <cstdint>

#include "ops/cuda/head_tiles.cuh"
#include "ops/cuda/key_ranges.cuh"
#include "ops/cuda/lanes.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/operands.cuh"

namespace cubit {
namespace cuda {

// Sizes of one kernel. A warp has kMTiles x 16 rows.
template <typename Element, int kDimValue, int kWarpsValue, int kMTilesValue,
          int kColumnsValue, int kStagesValue>
struct AttentionTiles {
  using T = Element;
  using Op = Operands<T>;
  static constexpr int kDim = kDimValue;
  static constexpr int kWarps = kWarpsValue;
  static constexpr int kMTiles = kMTilesValue;
  static constexpr int kColumns = kColumnsValue;
  static constexpr int kStages = kStagesValue;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRows = kWarps * kMTiles * 16;
  static constexpr int kStride = kDim + Op::kPadding;
  static constexpr int kRowTile = kRows * kStride;        // elements
  static constexpr int kColumnTile = kColumns * kStride;  // elements
  // Left operands stay in registers where there is room for them.
  static constexpr bool kHoldsRows = sizeof(T) == 2 && kDim * kMTiles <= 128;
};

// Sums of a warp: kMTiles x 16 rows of kWidth columns.
template <class Tiles, int kWidth>
using Accumulators = float[Tiles::kMTiles][kWidth / 8][4];

template <class Tiles, int kWidth>
__device__ __forceinline__ void SetZero(Accumulators<Tiles, kWidth>& c) {
#pragma unroll
  for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] = 0.0f;
    }
  }
}

// The rows of one warp as left operands, from shared memory.
template <class Tiles>
class WarpRows {
 public:
  using T = typename Tiles::T;
  using A = typename Tiles::Op::A;

  __device__ __forceinline__ explicit WarpRows(const T* tile) : tile_(tile) {}

  // After the tile has arrived.
  __device__ __forceinline__ void Hold() {
    if constexpr (Tiles::kHoldsRows) {
#pragma unroll
      for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
        for (int step = 0; step < Tiles::kDim / 16; ++step) {
          held_[m][step] = Load(m, step);
        }
      }
    }
  }
  __device__ __forceinline__ A Get(int m, int step) const {
    if constexpr (Tiles::kHoldsRows) {
      return held_[m][step];
    } else {
      return Load(m, step);
    }
  }

 private:
  __device__ __forceinline__ A Load(int m, int step) const {
    const int warp = threadIdx.x / 32;
    return Tiles::Op::LoadA(tile_, Tiles::kStride,
                            (warp * Tiles::kMTiles + m) * 16, step * 16);
  }

  const T* tile_;
  A held_[Tiles::kHoldsRows ? Tiles::kMTiles : 1]
         [Tiles::kHoldsRows ? Tiles::kDim / 16 : 1];
};

// c = rows tile^T.
template <class Tiles>
__device__ __forceinline__ void MultiplyTransposed(
    const WarpRows<Tiles>& rows, const typename Tiles::T* tile,
    Accumulators<Tiles, Tiles::kColumns>& c) {
  using Op = typename Tiles::Op;
  SetZero<Tiles, Tiles::kColumns>(c);
#pragma unroll
  for (int step = 0; step < Tiles::kDim / 16; ++step) {
    typename Op::A a[Tiles::kMTiles];
#pragma unroll
    for (int m = 0; m < Tiles::kMTiles; ++m) a[m] = rows.Get(m, step);
#pragma unroll
    for (int n = 0; n < Tiles::kColumns / 16; ++n) {
      const typename Op::B b =
          Op::LoadRows(tile, Tiles::kStride, n * 16, step * 16);
#pragma unroll
      for (int m = 0; m < Tiles::kMTiles; ++m) {
        Op::Multiply(c[m][2 * n], c[m][2 * n + 1], a[m], b);
      }
    }
  }
}

// c += weights tile.
template <class Tiles>
__device__ __forceinline__ void MultiplyAdd(
    const Accumulators<Tiles, Tiles::kColumns>& weights,
    const typename Tiles::T* tile, Accumulators<Tiles, Tiles::kDim>& c) {
  using Op = typename Tiles::Op;
#pragma unroll
  for (int step = 0; step < Tiles::kColumns / 16; ++step) {
    typename Op::A a[Tiles::kMTiles];
#pragma unroll
    for (int m = 0; m < Tiles::kMTiles; ++m) {
      a[m] =
          Op::FromAccumulators(weights[m][2 * step], weights[m][2 * step + 1]);
    }
#pragma unroll
    for (int n = 0; n < Tiles::kDim / 16; ++n) {
      const typename Op::B b =
          Op::LoadColumns(tile, Tiles::kStride, step * 16, n * 16);
#pragma unroll
      for (int m = 0; m < Tiles::kMTiles; ++m) {
        Op::Multiply(c[m][2 * n], c[m][2 * n + 1], a[m], b);
      }
    }
  }
}

// Row of the block that (m tile, half) of this thread is.
template <class Tiles>
__device__ __forceinline__ int RowOfThread(int m, int half) {
  const int warp = threadIdx.x / 32;
  return (warp * Tiles::kMTiles + m) * 16 + half * 8 + threadIdx.x % 32 / 4;
}

// Per-row numbers of a thread.
template <class Tiles, typename Value>
using RowValues = Value[Tiles::kMTiles][2];

// Sets entries of columns [first, first + kColumns) that lie outside the rows'
// ranges to `value`.
template <class Tiles>
__device__ __forceinline__ void MaskOutside(
    const RowValues<Tiles, int2>& ranges, int first, float value,
    Accumulators<Tiles, Tiles::kColumns>& c) {
  const int quad = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int2 range = ranges[m][half];
      if (range.x <= first && first + Tiles::kColumns <= range.y) continue;
#pragma unroll
      for (int n = 0; n < Tiles::kColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = first + n * 8 + quad * 2 + i;
          if (column < range.x || column >= range.y) {
            c[m][n][half * 2 + i] = value;
          }
        }
      }
    }
  }
}

// Keys that each row of a thread sees; rows beyond the last query see all.
template <class Tiles>
__device__ __forceinline__ void RangesOfQueries(
    const KeyRanges& keys, int b, int first, int num_queries,
    RowValues<Tiles, int2>& ranges) {
#pragma unroll
  for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first + RowOfThread<Tiles>(m, half);
      ranges[m][half] =
          query < num_queries ? keys.OfQuery(b, query) : make_int2(0, 1 << 30);
    }
  }
}

// Tiles [begin, end) of two tensors of one head on their way through the stages
// of shared memory, a tile of each in a stage.
template <class Tiles>
struct TileStream {
  using T = typename Tiles::T;
  const HeadRows<const T>& first;
  const HeadRows<const T>& second;
  const T* first_head;
  const T* second_head;
  T* stages;
  int begin, end;

  __device__ __forceinline__ int Slot(int tile) const {
    return (tile - begin) % Tiles::kStages;
  }
  // Of the first tensor; that of the second is kColumnTile behind it.
  __device__ __forceinline__ T* Stage(int tile) const {
    return stages + Slot(tile) * 2 * Tiles::kColumnTile;
  }
  // Starts the copies of a tile; the caller commits them.
  __device__ __forceinline__ void Load(int tile) const {
    const int column = tile * Tiles::kColumns;
    LoadTile<T, Tiles::kColumns, Tiles::kDim, Tiles::kStride, Tiles::kThreads>(
        first, first_head, column, Stage(tile));
    LoadTile<T, Tiles::kColumns, Tiles::kDim, Tiles::kStride, Tiles::kThreads>(
        second, second_head, column, Stage(tile) + Tiles::kColumnTile);
  }
};

// Of the tensors `first` and `second` of head (b, h): the tiles that the rows
// `first_row` to `last_row` see; each row sees [x, y) = range(row).
template <class Tiles, typename Range>
__device__ __forceinline__ TileStream<Tiles> StreamTiles(
    const HeadRows<const typename Tiles::T>& first,
    const HeadRows<const typename Tiles::T>& second, int b, int h,
    int first_row, int last_row, const Range& range,
    typename Tiles::T* stages) {
  const int begin = range(first_row).x / Tiles::kColumns;
  const int end = (range(last_row).y + Tiles::kColumns - 1) / Tiles::kColumns;
  return {first, second, first.Head(b, h), second.Head(b, h), stages,
          begin, end};
}

// Starts the copies of the block's own rows of head (b, h), from `first` on.
template <class Tiles>
__device__ __forceinline__ void LoadRows(
    const HeadRows<const typename Tiles::T>& heads, int b, int h, int first,
    typename Tiles::T* tile) {
  LoadTile<typename Tiles::T, Tiles::kRows, Tiles::kDim, Tiles::kStride,
           Tiles::kThreads>(heads, heads.Head(b, h), first, tile);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ATTENTION_TILES_CUH_
