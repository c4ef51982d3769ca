// SPDX-License-Identifier: Apache-2.0
//
// The backward kernels of softmax attention (attention_tiles.cuh): one for the
// gradients of queries, one for those of keys and values. Both make the weights
// again, from lse.

#ifndef CUBIT_OPS_CUDA_ATTENTION_BACKWARD_CUH_
#define CUBIT_OPS_CUDA_ATTENTION_BACKWARD_CUH_

#include <cmath>
#include <cstdint>

#include "ops/cuda/attention_tiles.cuh"

namespace cubit {
namespace cuda {

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

// scores becomes dS, where rows are queries.
template <class Tiles>
__device__ __forceinline__ void ScoreGradientsOfRows(
    float scale_log2, const RowValues<Tiles, float>& lse_log2,
    const RowValues<Tiles, float>& delta,
    const Accumulators<Tiles, Tiles::kColumns>& d_weights,
    Accumulators<Tiles, Tiles::kColumns>& scores) {
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
}

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
  const auto keys = StreamTiles<Tiles>(
      in.k, in.v, b, h, first, last,
      [&](int query) { return in.keys.OfQuery(b, query); }, stages);
  const auto load = [&](int tile) {
    if (tile < keys.end) keys.Load(tile);
    CommitCopies();
  };

  LoadRows<Tiles>(in.q, b, h, first, q_tile);
  LoadRows<Tiles>(in.d_out, b, h, first, d_out_tile);
#pragma unroll
  for (int i = 0; i < Tiles::kStages - 1; ++i) load(keys.begin + i);

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

  for (int tile = keys.begin; tile < keys.end; ++tile) {
    WaitForCopies<Tiles::kStages - 2>();
    __syncthreads();
    load(tile + Tiles::kStages - 1);
    if (tile == keys.begin) {
      queries.Hold();
      d_outs.Hold();
    }
    const T* const k_tile = keys.Stage(tile);
    Accumulators<Tiles, Tiles::kColumns> scores;
    Accumulators<Tiles, Tiles::kColumns> d_weights;
    MultiplyTransposed<Tiles>(queries, k_tile, scores);
    MultiplyTransposed<Tiles>(d_outs, k_tile + Tiles::kColumnTile, d_weights);
    MaskOutside<Tiles>(ranges, tile * Tiles::kColumns, -INFINITY, scores);
    ScoreGradientsOfRows<Tiles>(scale_log2, lse_log2, delta, d_weights, scores);
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

// scores becomes P, where columns are queries, whose `lse` [kColumns] is in
// shared memory.
template <class Tiles>
__device__ __forceinline__ void WeightsOfColumns(
    float scale_log2, const float* lse, int quad,
    Accumulators<Tiles, Tiles::kColumns>& scores) {
#pragma unroll
  for (int n = 0; n < Tiles::kColumns / 8; ++n) {
    const float2 pair = LoadPair(lse + n * 8 + quad * 2);
#pragma unroll
    for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float shift = (i % 2 == 0 ? pair.x : pair.y) * kLog2E;
        scores[m][n][i] = Exp2(scores[m][n][i] * scale_log2 - shift);
      }
    }
  }
}

// d_weights becomes dS, likewise.
template <class Tiles>
__device__ __forceinline__ void ScoreGradientsOfColumns(
    const Accumulators<Tiles, Tiles::kColumns>& weights, const float* delta,
    int quad, Accumulators<Tiles, Tiles::kColumns>& d_weights) {
#pragma unroll
  for (int n = 0; n < Tiles::kColumns / 8; ++n) {
    const float2 pair = LoadPair(delta + n * 8 + quad * 2);
#pragma unroll
    for (int m = 0; m < Tiles::kMTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        d_weights[m][n][i] =
            weights[m][n][i] *
            (d_weights[m][n][i] - (i % 2 == 0 ? pair.x : pair.y));
      }
    }
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
  const auto queries = StreamTiles<Tiles>(
      in.q, in.d_out, b, h, first, last,
      [&](int key) { return in.keys.QueriesOf(b, key); }, stages);
  const int64_t head_statistics =
      (b * in.num_heads + h) * static_cast<int64_t>(in.q.seq_len);
  const auto load = [&](int tile) {
    if (tile < queries.end) {
      queries.Load(tile);
      float* const numbers =
          statistics + queries.Slot(tile) * 2 * Tiles::kColumns;
      const int column = tile * Tiles::kColumns;
      LoadStatistics<Tiles>(in.lse + head_statistics, column, in.q.seq_len,
                            numbers);
      LoadStatistics<Tiles>(in.delta + head_statistics, column, in.q.seq_len,
                            numbers + Tiles::kColumns);
    }
    CommitCopies();
  };

  LoadRows<Tiles>(in.k, b, h, first, k_tile);
  LoadRows<Tiles>(in.v, b, h, first, v_tile);
#pragma unroll
  for (int i = 0; i < Tiles::kStages - 1; ++i) load(queries.begin + i);

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

  for (int tile = queries.begin; tile < queries.end; ++tile) {
    WaitForCopies<Tiles::kStages - 2>();
    __syncthreads();
    load(tile + Tiles::kStages - 1);
    if (tile == queries.begin) {
      keys.Hold();
      values.Hold();
    }
    const T* const q_tile = queries.Stage(tile);
    const T* const d_out_tile = q_tile + Tiles::kColumnTile;
    const float* const numbers =
        statistics + queries.Slot(tile) * 2 * Tiles::kColumns;
    Accumulators<Tiles, Tiles::kColumns> weights;
    MultiplyTransposed<Tiles>(keys, q_tile, weights);
    MaskOutside<Tiles>(ranges, tile * Tiles::kColumns, -INFINITY, weights);
    WeightsOfColumns<Tiles>(scale_log2, numbers, quad, weights);
    MultiplyAdd<Tiles>(weights, d_out_tile, d_v);
    Accumulators<Tiles, Tiles::kColumns> d_weights;
    MultiplyTransposed<Tiles>(values, d_out_tile, d_weights);
    ScoreGradientsOfColumns<Tiles>(weights, numbers + Tiles::kColumns, quad,
                                   d_weights);
    MultiplyAdd<Tiles>(d_weights, q_tile, d_k);
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

#endif  // CUBIT_OPS_CUDA_ATTENTION_BACKWARD_CUH_
