// SPDX-License-Identifier: Apache-2.0
//
// The forward kernel of softmax attention (attention_tiles.cuh): out and lse of
// a block of queries, by a running maximum.

#ifndef CUBIT_OPS_CUDA_ATTENTION_FORWARD_CUH_
#define CUBIT_OPS_CUDA_ATTENTION_FORWARD_CUH_

#include <cmath>
#include <cstdint>

#include "ops/cuda/attention_tiles.cuh"

namespace cubit {
namespace cuda {

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
  const auto keys = StreamTiles<Tiles>(
      in.k, in.v, b, h, first, last,
      [&](int query) { return in.keys.OfQuery(b, query); }, stages);
  const auto load = [&](int tile) {
    if (tile < keys.end) keys.Load(tile);
    CommitCopies();
  };

  LoadRows<Tiles>(in.q, b, h, first, q_tile);
#pragma unroll
  for (int i = 0; i < Tiles::kStages - 1; ++i) load(keys.begin + i);

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

  for (int tile = keys.begin; tile < keys.end; ++tile) {
    WaitForCopies<Tiles::kStages - 2>();
    __syncthreads();
    load(tile + Tiles::kStages - 1);
    if (tile == keys.begin) queries.Hold();
    const T* const stage = keys.Stage(tile);
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

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ATTENTION_FORWARD_CUH_
