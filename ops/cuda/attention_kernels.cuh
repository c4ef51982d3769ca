// SPDX-License-Identifier: Apache-2.0
//
// Softmax attention on tensor cores of sm_80 and newer: one forward kernel and
// two backward kernels, for head dims up to kDim, any lengths and masks.
//
// All three have the same shape. A block of threads holds `kRows` rows of one
// head (queries, or keys where d_k and d_v are made) and streams tiles of
// `kColumns` of the other side through shared memory, copies of the next tiles
// under way while one is computed. What a query sees is always one range of
// keys (key_ranges.cuh), so tiles outside the range are never loaded and only
// those at its ends are masked. Nothing is summed across blocks: no atomics,
// and equal bits in every run.

#ifndef CUBIT_OPS_CUDA_ATTENTION_KERNELS_CUH_
#define CUBIT_OPS_CUDA_ATTENTION_KERNELS_CUH_

#include <cmath>
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

// --- Forward ---------------------------------------------------------------

template <typename T>
struct AttentionForwardArguments {
  HeadRows<const T> q, k, v;
  HeadRows<T> out;
  float* lse;  // [B, H, Tq]
  float scale;
  int num_heads;
  KeyRanges keys;
};

// Replaces scores by weights exp(scale (s - maximum)) and rescales what was
// summed under the old maximum.
template <class Tiles>
__device__ __forceinline__ void UpdateSoftmax(
    float scale_log2, Accumulators<Tiles, Tiles::kColumns>& scores,
    RowValues<Tiles, float>& maximum, RowValues<Tiles, float>& sum,
    Accumulators<Tiles, Tiles::kDim>& out) {
#pragma unroll
  for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = maximum[m][half];
#pragma unroll
      for (int n = 0; n < Tiles::kColumns / 8; ++n) {
        largest = fmaxf(largest, scores[m][n][half * 2]);
        largest = fmaxf(largest, scores[m][n][half * 2 + 1]);
      }
      largest = QuadMax(largest);
      // A row that has seen no key yet keeps weights of 0, not NaN.
      const float shift = largest == -INFINITY ? 0.0f : largest * scale_log2;
      const float rescale = Exp2(maximum[m][half] * scale_log2 - shift);
      maximum[m][half] = largest;
      float row_sum = 0.0f;
#pragma unroll
      for (int n = 0; n < Tiles::kColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[m][n][half * 2 + i];
          score = Exp2(score * scale_log2 - shift);
          row_sum += score;
        }
      }
      sum[m][half] = sum[m][half] * rescale + row_sum;
#pragma unroll
      for (int n = 0; n < Tiles::kDim / 8; ++n) {
        out[m][n][half * 2] *= rescale;
        out[m][n][half * 2 + 1] *= rescale;
      }
    }
  }
}

template <class Tiles>
__device__ __forceinline__ void StoreForward(
    const AttentionForwardArguments<typename Tiles::T>& in, int b, int h,
    int first, const Accumulators<Tiles, Tiles::kDim>& out,
    const RowValues<Tiles, float>& maximum, RowValues<Tiles, float>& sum) {
  using T = typename Tiles::T;
#pragma unroll
  for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = QuadSum(sum[m][half]);
      const int query = first + RowOfThread<Tiles>(m, half);
      if (query >= in.q.seq_len) continue;
      T* row = in.out.Head(b, h) + query * in.out.seq_stride;
      StoreAccumulators<T, Tiles::kDim>(out[m], half, 1.0f / total, false,
                                        in.out, row);
      if (threadIdx.x % 4 == 0) {
        in.lse[(b * in.num_heads + h) * static_cast<int64_t>(in.q.seq_len) +
               query] = maximum[m][half] * in.scale + logf(total);
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

// Grid: (B H, blocks of queries). The blocks with the most keys come first, so
// that short ones fill the end of the grid.
template <class Tiles>
__global__ void __launch_bounds__(Tiles::kThreads) AttentionForwardKernel(
    const AttentionForwardArguments<typename Tiles::T> in) {
  using T = typename Tiles::T;
  extern __shared__ __align__(16) unsigned char shared[];
  T* const q_tile = reinterpret_cast<T*>(shared);
  T* const stages = q_tile + Tiles::kRowTile;

  const int b = blockIdx.x / in.num_heads;
  const int h = blockIdx.x % in.num_heads;
  const int first = (gridDim.y - 1 - blockIdx.y) * Tiles::kRows;
  const int last = min(first + Tiles::kRows, in.q.seq_len) - 1;
  const int begin = in.keys.OfQuery(b, first).x / Tiles::kColumns;
  const int end =
      (in.keys.OfQuery(b, last).y + Tiles::kColumns - 1) / Tiles::kColumns;
  const T* const k_head = in.k.Head(b, h);
  const T* const v_head = in.v.Head(b, h);
  const auto load = [&](int tile) {
    if (tile < end) {
      T* const stage =
          stages + (tile - begin) % Tiles::kStages * 2 * Tiles::kColumnTile;
      LoadTile<T, Tiles::kColumns, Tiles::kDim, Tiles::kStride,
               Tiles::kThreads>(in.k, k_head, tile * Tiles::kColumns, stage);
      LoadTile<T, Tiles::kColumns, Tiles::kDim, Tiles::kStride,
               Tiles::kThreads>(in.v, v_head, tile * Tiles::kColumns,
                                stage + Tiles::kColumnTile);
    }
    CommitCopies();
  };

  LoadTile<T, Tiles::kRows, Tiles::kDim, Tiles::kStride, Tiles::kThreads>(
      in.q, in.q.Head(b, h), first, q_tile);
#pragma unroll
  for (int i = 0; i < Tiles::kStages - 1; ++i) load(begin + i);

  RowValues<Tiles, int2> ranges;
  RangesOfQueries<Tiles>(in.keys, b, first, in.q.seq_len, ranges);
  RowValues<Tiles, float> maximum;
  RowValues<Tiles, float> sum;
#pragma unroll
  for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maximum[m][half] = -INFINITY;
      sum[m][half] = 0.0f;
    }
  }
  Accumulators<Tiles, Tiles::kDim> out;
  SetZero<Tiles, Tiles::kDim>(out);
  WarpRows<Tiles> queries(q_tile);
  const float scale_log2 = in.scale * kLog2E;

  for (int tile = begin; tile < end; ++tile) {
    WaitForCopies<Tiles::kStages - 2>();
    __syncthreads();
    load(tile + Tiles::kStages - 1);
    if (tile == begin) queries.Hold();
    const T* const stage =
        stages + (tile - begin) % Tiles::kStages * 2 * Tiles::kColumnTile;
    Accumulators<Tiles, Tiles::kColumns> scores;
    MultiplyTransposed<Tiles>(queries, stage, scores);
    MaskOutside<Tiles>(ranges, tile * Tiles::kColumns, -INFINITY, scores);
    UpdateSoftmax<Tiles>(scale_log2, scores, maximum, sum, out);
    MultiplyAdd<Tiles>(scores, stage + Tiles::kColumnTile, out);
  }
  StoreForward<Tiles>(in, b, h, first, out, maximum, sum);
}

template <class Tiles>
constexpr int ForwardSharedBytes() {
  return (Tiles::kRowTile + Tiles::kStages * 2 * Tiles::kColumnTile) *
         static_cast<int>(sizeof(typename Tiles::T));
}

// --- Backward --------------------------------------------------------------

template <typename T>
struct AttentionBackwardArguments {
  HeadRows<const T> q, k, v, d_out;
  HeadRows<T> d_q, d_k, d_v;
  const float* lse;    // [B, H, T]
  const float* delta;  // [B, H, T]
  float scale;
  int num_heads;
  bool add_d_q, add_d_k, add_d_v;
  KeyRanges keys;
};

// d_q: rows are queries, columns are keys.
//   P = exp(scale q k^T - lse), dS = P (d_out v^T - delta), d_q = scale dS k.
template <class Tiles>
__global__ void __launch_bounds__(Tiles::kThreads) AttentionQueryGradientKernel(
    const AttentionBackwardArguments<typename Tiles::T> in) {
  using T = typename Tiles::T;
  extern __shared__ __align__(16) unsigned char shared[];
  T* const q_tile = reinterpret_cast<T*>(shared);
  T* const d_out_tile = q_tile + Tiles::kRowTile;
  T* const stages = d_out_tile + Tiles::kRowTile;

  const int b = blockIdx.x / in.num_heads;
  const int h = blockIdx.x % in.num_heads;
  const int first = (gridDim.y - 1 - blockIdx.y) * Tiles::kRows;
  const int last = min(first + Tiles::kRows, in.q.seq_len) - 1;
  const int begin = in.keys.OfQuery(b, first).x / Tiles::kColumns;
  const int end =
      (in.keys.OfQuery(b, last).y + Tiles::kColumns - 1) / Tiles::kColumns;
  const T* const k_head = in.k.Head(b, h);
  const T* const v_head = in.v.Head(b, h);
  const auto load = [&](int tile) {
    if (tile < end) {
      T* const stage =
          stages + (tile - begin) % Tiles::kStages * 2 * Tiles::kColumnTile;
      LoadTile<T, Tiles::kColumns, Tiles::kDim, Tiles::kStride,
               Tiles::kThreads>(in.k, k_head, tile * Tiles::kColumns, stage);
      LoadTile<T, Tiles::kColumns, Tiles::kDim, Tiles::kStride,
               Tiles::kThreads>(in.v, v_head, tile * Tiles::kColumns,
                                stage + Tiles::kColumnTile);
    }
    CommitCopies();
  };

  LoadTile<T, Tiles::kRows, Tiles::kDim, Tiles::kStride, Tiles::kThreads>(
      in.q, in.q.Head(b, h), first, q_tile);
  LoadTile<T, Tiles::kRows, Tiles::kDim, Tiles::kStride, Tiles::kThreads>(
      in.d_out, in.d_out.Head(b, h), first, d_out_tile);
#pragma unroll
  for (int i = 0; i < Tiles::kStages - 1; ++i) load(begin + i);

  RowValues<Tiles, int2> ranges;
  RangesOfQueries<Tiles>(in.keys, b, first, in.q.seq_len, ranges);
  RowValues<Tiles, float> lse_log2;
  RowValues<Tiles, float> delta;
  const int64_t statistics =
      (b * in.num_heads + h) * static_cast<int64_t>(in.q.seq_len);
#pragma unroll
  for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = min(first + RowOfThread<Tiles>(m, half), last);
      lse_log2[m][half] = in.lse[statistics + query] * kLog2E;
      delta[m][half] = in.delta[statistics + query];
    }
  }
  Accumulators<Tiles, Tiles::kDim> d_q;
  SetZero<Tiles, Tiles::kDim>(d_q);
  WarpRows<Tiles> queries(q_tile);
  WarpRows<Tiles> d_outs(d_out_tile);
  const float scale_log2 = in.scale * kLog2E;

  for (int tile = begin; tile < end; ++tile) {
    WaitForCopies<Tiles::kStages - 2>();
    __syncthreads();
    load(tile + Tiles::kStages - 1);
    if (tile == begin) {
      queries.Hold();
      d_outs.Hold();
    }
    const T* const k_tile =
        stages + (tile - begin) % Tiles::kStages * 2 * Tiles::kColumnTile;
    Accumulators<Tiles, Tiles::kColumns> scores;
    Accumulators<Tiles, Tiles::kColumns> d_weights;
    MultiplyTransposed<Tiles>(queries, k_tile, scores);
    MultiplyTransposed<Tiles>(d_outs, k_tile + Tiles::kColumnTile, d_weights);
    MaskOutside<Tiles>(ranges, tile * Tiles::kColumns, -INFINITY, scores);
#pragma unroll
    for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Tiles::kColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float weight =
              Exp2(scores[m][n][i] * scale_log2 - lse_log2[m][i / 2]);
          scores[m][n][i] = weight * (d_weights[m][n][i] - delta[m][i / 2]);
        }
      }
    }
    MultiplyAdd<Tiles>(scores, k_tile, d_q);
  }
#pragma unroll
  for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first + RowOfThread<Tiles>(m, half);
      if (query > last) continue;
      StoreAccumulators<T, Tiles::kDim>(
          d_q[m], half, in.scale, in.add_d_q, in.d_q,
          in.d_q.Head(b, h) + query * in.d_q.seq_stride);
    }
  }
}

template <class Tiles>
constexpr int QueryGradientSharedBytes() {
  return (2 * Tiles::kRowTile + Tiles::kStages * 2 * Tiles::kColumnTile) *
         static_cast<int>(sizeof(typename Tiles::T));
}

// Loads kColumns numbers of `source` [T] from `first`; zeros beyond T.
template <class Tiles>
__device__ __forceinline__ void LoadStatistics(const float* source, int first,
                                               int seq_len, float* target) {
  for (int i = threadIdx.x; i < Tiles::kColumns; i += Tiles::kThreads) {
    const bool valid = first + i < seq_len;
    CopyAsync4(SharedAddress(target + i), valid ? source + first + i : source,
               valid);
  }
}

// d_k and d_v: rows are keys, columns are queries, every product transposed.
//   d_v = P^T d_out, d_k = scale dS^T q.
template <class Tiles>
__global__ void __launch_bounds__(Tiles::kThreads) AttentionKeyGradientKernel(
    const AttentionBackwardArguments<typename Tiles::T> in) {
  using T = typename Tiles::T;
  extern __shared__ __align__(16) unsigned char shared[];
  T* const k_tile = reinterpret_cast<T*>(shared);
  T* const v_tile = k_tile + Tiles::kRowTile;
  T* const stages = v_tile + Tiles::kRowTile;
  float* const statistics = reinterpret_cast<float*>(
      stages + Tiles::kStages * 2 * Tiles::kColumnTile);

  const int b = blockIdx.x / in.num_heads;
  const int h = blockIdx.x % in.num_heads;
  const int first = blockIdx.y * Tiles::kRows;
  const int last = min(first + Tiles::kRows, in.k.seq_len) - 1;
  const int begin = in.keys.QueriesOf(b, first).x / Tiles::kColumns;
  const int end =
      (in.keys.QueriesOf(b, last).y + Tiles::kColumns - 1) / Tiles::kColumns;
  const T* const q_head = in.q.Head(b, h);
  const T* const d_out_head = in.d_out.Head(b, h);
  const int64_t head_statistics =
      (b * in.num_heads + h) * static_cast<int64_t>(in.q.seq_len);
  const auto load = [&](int tile) {
    if (tile < end) {
      const int slot = (tile - begin) % Tiles::kStages;
      T* const stage = stages + slot * 2 * Tiles::kColumnTile;
      const int column = tile * Tiles::kColumns;
      LoadTile<T, Tiles::kColumns, Tiles::kDim, Tiles::kStride,
               Tiles::kThreads>(in.q, q_head, column, stage);
      LoadTile<T, Tiles::kColumns, Tiles::kDim, Tiles::kStride,
               Tiles::kThreads>(in.d_out, d_out_head, column,
                                stage + Tiles::kColumnTile);
      float* const numbers = statistics + slot * 2 * Tiles::kColumns;
      LoadStatistics<Tiles>(in.lse + head_statistics, column, in.q.seq_len,
                            numbers);
      LoadStatistics<Tiles>(in.delta + head_statistics, column, in.q.seq_len,
                            numbers + Tiles::kColumns);
    }
    CommitCopies();
  };

  LoadTile<T, Tiles::kRows, Tiles::kDim, Tiles::kStride, Tiles::kThreads>(
      in.k, in.k.Head(b, h), first, k_tile);
  LoadTile<T, Tiles::kRows, Tiles::kDim, Tiles::kStride, Tiles::kThreads>(
      in.v, in.v.Head(b, h), first, v_tile);
#pragma unroll
  for (int i = 0; i < Tiles::kStages - 1; ++i) load(begin + i);

  RowValues<Tiles, int2> ranges;
#pragma unroll
  for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = first + RowOfThread<Tiles>(m, half);
      ranges[m][half] =
          key <= last ? in.keys.QueriesOf(b, key) : make_int2(0, in.q.seq_len);
    }
  }
  Accumulators<Tiles, Tiles::kDim> d_k;
  Accumulators<Tiles, Tiles::kDim> d_v;
  SetZero<Tiles, Tiles::kDim>(d_k);
  SetZero<Tiles, Tiles::kDim>(d_v);
  WarpRows<Tiles> keys(k_tile);
  WarpRows<Tiles> values(v_tile);
  const float scale_log2 = in.scale * kLog2E;
  const int quad = threadIdx.x % 4;

  for (int tile = begin; tile < end; ++tile) {
    WaitForCopies<Tiles::kStages - 2>();
    __syncthreads();
    load(tile + Tiles::kStages - 1);
    if (tile == begin) {
      keys.Hold();
      values.Hold();
    }
    const int slot = (tile - begin) % Tiles::kStages;
    const T* const q_tile = stages + slot * 2 * Tiles::kColumnTile;
    const T* const d_out_tile = q_tile + Tiles::kColumnTile;
    const float* const numbers = statistics + slot * 2 * Tiles::kColumns;
    Accumulators<Tiles, Tiles::kColumns> weights;
    MultiplyTransposed<Tiles>(keys, q_tile, weights);
    MaskOutside<Tiles>(ranges, tile * Tiles::kColumns, -INFINITY, weights);
#pragma unroll
    for (int n = 0; n < Tiles::kColumns / 8; ++n) {
      const float2 lse = LoadPair(numbers + n * 8 + quad * 2);
#pragma unroll
      for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float shift = (i % 2 == 0 ? lse.x : lse.y) * kLog2E;
          weights[m][n][i] = Exp2(weights[m][n][i] * scale_log2 - shift);
        }
      }
    }
    MultiplyAdd<Tiles>(weights, d_out_tile, d_v);
    Accumulators<Tiles, Tiles::kColumns> d_scores;
    MultiplyTransposed<Tiles>(values, d_out_tile, d_scores);
#pragma unroll
    for (int n = 0; n < Tiles::kColumns / 8; ++n) {
      const float2 delta =
          LoadPair(numbers + Tiles::kColumns + n * 8 + quad * 2);
#pragma unroll
      for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          d_scores[m][n][i] =
              weights[m][n][i] *
              (d_scores[m][n][i] - (i % 2 == 0 ? delta.x : delta.y));
        }
      }
    }
    MultiplyAdd<Tiles>(d_scores, q_tile, d_k);
  }
#pragma unroll
  for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = first + RowOfThread<Tiles>(m, half);
      if (key > last) continue;
      StoreAccumulators<T, Tiles::kDim>(
          d_k[m], half, in.scale, in.add_d_k, in.d_k,
          in.d_k.Head(b, h) + key * in.d_k.seq_stride);
      StoreAccumulators<T, Tiles::kDim>(
          d_v[m], half, 1.0f, in.add_d_v, in.d_v,
          in.d_v.Head(b, h) + key * in.d_v.seq_stride);
    }
  }
}

template <class Tiles>
constexpr int KeyGradientSharedBytes() {
  return QueryGradientSharedBytes<Tiles>() +
         Tiles::kStages * 2 * Tiles::kColumns * static_cast<int>(sizeof(float));
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ATTENTION_KERNELS_CUH_
