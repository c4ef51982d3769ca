// SPDX-License-Identifier: Apache-2.0
//
// What follows from a solved block of Y (adjoint_solver.cuh): Y . V and Y . X
// of its rows, of which delta and the gradients of the scalars are made, and
// the block's part of the sums of d_v.

#ifndef CUBIT_OPS_CUDA_ADJOINT_DOTS_CUH_
#define CUBIT_OPS_CUDA_ADJOINT_DOTS_CUH_

#include <cstdint>

#include "ops/cuda/adjoint_solver.cuh"
#include "ops/cuda/head_tile.cuh"
#include "ops/cuda/krr_health.cuh"
#include "ops/cuda/lanes.cuh"
#include "ops/cuda/pairs.cuh"

namespace cubit {
namespace cuda {

// Adds up kCount values over the lanes that differ in the bits kMask, kMask / 2
// to kLastMask of their number: with each bit a lane gives away one half of its
// values and keeps the other. Those that are left are as many from the
// beginning; what these bits of the lane are, times their count, is the number
// of the first.
template <int kMask, int kLastMask, int kCount>
__device__ __forceinline__ void SumOverLanes(float* values) {
  static_assert(kCount % 2 == 0 && kMask >= kLastMask);
  constexpr int kHalf = kCount / 2;
  const bool upper = (threadIdx.x & kMask) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float low = values[i];
    const float high = values[i + kHalf];
    values[i] = (upper ? high : low) +
                __shfl_xor_sync(0xffffffffu, upper ? low : high, kMask);
  }
  if constexpr (kMask > kLastMask) {
    SumOverLanes<kMask / 2, kLastMask, kHalf>(values);
  }
}

// sum_j P_ij Y_i . X_j over the keys that row i sees; one warp. For lambda > 1,
// where value_scale V - lambda X, the same vector P X, has no correct digit
// left. Such a ridge is an experiment, not a way to train: no tensor cores.
template <typename Element>
__device__ __noinline__ float WeightedProducts(const AdjointArguments& in,
                                               int b, int h, int row,
                                               const float* y) {
  const int lane = threadIdx.x % 32;
  const Element* r = in.queries.Head<const Element>(b, h);
  const Element* x = in.x.Head<const Element>(b, h);
  const int64_t row0 =
      (static_cast<int64_t>(b) * in.num_heads + h) * in.seq_len;
  int begin = 0;
  if (in.segments != nullptr) {
    begin =
        DocumentBegin(in.segments + static_cast<int64_t>(b) * in.seq_len, row);
  }
  float sum = 0;
  for (int j = begin; j <= row; ++j) {
    float score = 0;
    float product = 0;
    for (int c = lane; c < in.head_dim; c += 32) {
      score += ToFloat(r[row * in.queries.seq_stride + c]) *
               ToFloat(r[j * in.queries.seq_stride + c]);
      product += y[c] * ToFloat(x[j * in.x.seq_stride + c]);
    }
    score = WarpSum(score) * in.column_scale[row0 + j];
    sum += expf(score - in.lse[row0 + row]) * WarpSum(product);
  }
  return sum;
}

// What follows from Y . V and Y . X of a row, by one thread.
template <typename Products, int kDim, bool kWarpgroup, bool kOnlyY>
__device__ __forceinline__ void
AdjointSolver<Products, kDim, kWarpgroup, kOnlyY>::StoreDots(int row,
                                                             float value_scale,
                                                             float y_dot_v,
                                                             float y_dot_x) {
  if (in_.is_delta()) {
    in_.minus_delta[item_.row0 + row] = y_dot_v - y_dot_x;
    return;
  }
  in_.d_value_scale[item_.row0 + row] = y_dot_v;
  if (lambda_ > 1) return;  // WeightedProducts
  in_.minus_delta[item_.row0 + row] = value_scale * y_dot_v - lambda_ * y_dot_x;
}

// The block's share of d_log_lambda, from Y . X of each warp's rows.
template <typename Products, int kDim, bool kWarpgroup, bool kOnlyY>
__device__ __forceinline__ void
AdjointSolver<Products, kDim, kWarpgroup, kOnlyY>::StoreLambdaPartial(
    float y_dot_x_of_warp) {
  if (in_.is_delta()) return;
  if (threadIdx.x % 32 == 0) {
    m_.dot_partials[threadIdx.x / 32] = y_dot_x_of_warp;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  float sum = 0;
  for (float partial : m_.dot_partials) sum += partial;
  in_.lambda_partials[static_cast<int64_t>(Pair()) * NumBlocks() +
                      item_.block] = sum;
}

template <typename Products, int kDim, bool kWarpgroup, bool kOnlyY>
__device__ __forceinline__ void
AdjointSolver<Products, kDim, kWarpgroup, kOnlyY>::FinishDots() {
  const int lane = threadIdx.x % 32;
  const Element* v = in_.v.Head<const Element>(item_.b, item_.h);
  const Element* x = in_.x.Head<const Element>(item_.b, item_.h);
  float y_dot_x_sum = 0;
  float largest_x = 0;
  float largest_v = 0;
#pragma unroll 4
  for (int i = 0; i < 16; ++i) {
    const int row = item_.first + own_row_ + i;
    if (row >= in_.seq_len) break;
    const float* y = m_.solution + (own_row_ + i) * kStride;
    const float value_scale =
        in_.is_delta() ? 1.0f : in_.value_scale[item_.row0 + row];
    float y_dot_v = 0;
    float y_dot_x = 0;
    float largest_v_of_row = 0;
#pragma unroll
    for (int k = 0; k < (kDim + 31) / 32; ++k) {
      const int c = k * 32 + lane;
      if (c < in_.head_dim) {
        // Y as the other products see it.
        const float value = Rounded<Element>(y[c]);
        const float v_c = ToFloat(v[row * in_.v.seq_stride + c]);
        const float x_c = ToFloat(x[row * in_.x.seq_stride + c]);
        y_dot_v = fmaf(value, v_c, y_dot_v);
        y_dot_x = fmaf(value, x_c, y_dot_x);
        largest_v_of_row = Larger(fabsf(v_c), largest_v_of_row);
        largest_x = Larger(fabsf(x_c), largest_x);
      }
    }
    largest_v = Larger(fabsf(value_scale) * largest_v_of_row, largest_v);
    y_dot_v = WarpSum(y_dot_v);
    y_dot_x = WarpSum(y_dot_x);
    y_dot_x_sum += y_dot_x;
    if (lane == 0) StoreDots(row, value_scale, y_dot_v, y_dot_x);
    if (lambda_ > 1) {
      const float sum =
          WeightedProducts<Element>(in_, item_.b, item_.h, row, y);
      if (lane == 0) in_.minus_delta[item_.row0 + row] = sum;
    }
  }
  NoteHealth(kLargestX, largest_x);
  NoteHealth(kLargestV, largest_v);
  StoreLambdaPartial(y_dot_x_sum);
}

// The same with Y in sums_, V and X in the stages of Y.
template <typename Products, int kDim, bool kWarpgroup, bool kOnlyY>
__device__ __forceinline__ void
AdjointSolver<Products, kDim, kWarpgroup, kOnlyY>::FinishDotsWarpgroup() {
  float y_dot_x_sum = 0;
  float largest_x = 0;
  float largest_v = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = own_row_ + group_ + 8 * half;
    float y_dot_v = 0;
    float y_dot_x = 0;
    float largest_v_of_row = 0;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int offset = HeadTile::Offset(row, 8 * n + 2 * quad_);
      const float2 v = LoadPair(Y(0) + offset);
      const float2 x = LoadPair(Y(1) + offset);
      // Y as the other products see it.
      const float y0 = Rounded<Element>(sums_[n][2 * half]);
      const float y1 = Rounded<Element>(sums_[n][2 * half + 1]);
      y_dot_v = fmaf(y1, v.y, fmaf(y0, v.x, y_dot_v));
      y_dot_x = fmaf(y1, x.y, fmaf(y0, x.x, y_dot_x));
      largest_v_of_row =
          Larger(fabsf(v.y), Larger(fabsf(v.x), largest_v_of_row));
      largest_x = Larger(fabsf(x.y), Larger(fabsf(x.x), largest_x));
    }
    largest_v = Larger(fabsf(value_scale_[half]) * largest_v_of_row, largest_v);
    y_dot_v = QuadSum(y_dot_v);
    y_dot_x = QuadSum(y_dot_x);
    // Rows beyond the sequence are zeros.
    if (quad_ != 0) continue;
    y_dot_x_sum += y_dot_x;
    if (item_.first + row < in_.seq_len) {
      StoreDots(item_.first + row, value_scale_[half], y_dot_v, y_dot_x);
    }
  }
  NoteHealth(kLargestX, largest_x);
  NoteHealth(kLargestV, largest_v);
  StoreLambdaPartial(WarpSum(y_dot_x_sum));
  if (lambda_ > 1) WeighRows();
}

// WeightedProducts of the block's rows, with Y from sums_.
template <typename Products, int kDim, bool kWarpgroup, bool kOnlyY>
__device__ __forceinline__ void
AdjointSolver<Products, kDim, kWarpgroup, kOnlyY>::WeighRows() {
  __syncthreads();  // everyone is done with V and X
  StoreSums([](int) { return 1.0f; }, m_.solution);
  __syncwarp();
  for (int i = 0; i < 16; ++i) {
    const int row = item_.first + own_row_ + i;
    if (row >= in_.seq_len) break;
    const float sum = WeightedProducts<Element>(
        in_, item_.b, item_.h, row, m_.solution + (own_row_ + i) * kStride);
    if (threadIdx.x % 32 == 0) in_.minus_delta[item_.row0 + row] = sum;
  }
}

// The block's part of the sums of d_v, which is in the keys' tile as it was
// stored, behind a barrier. Lanes that follow each other have rows of one chunk
// that follow each other.
template <typename Products, int kDim, bool kWarpgroup, bool kOnlyY>
__device__ __forceinline__ void
AdjointSolver<Products, kDim, kWarpgroup, kOnlyY>::StoreColumnSums() {
  constexpr int kChunk = HeadTile::kChunk;
  constexpr int kLanes = kSolveThreads * kChunk / kDim;  // of one chunk
  constexpr int kLanesOfSum = kLanes / kChunk;
  static_assert(kLanesOfSum == 1 || kLanesOfSum == 2);
  const int column = static_cast<int>(threadIdx.x) / kLanes * kChunk;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  float sums[kChunk] = {};
#pragma unroll
  for (int row = lane; row < kSolveBlock; row += kLanes) {
    if (item_.first + row >= in_.seq_len) break;
    const uint4 chunk =
        *reinterpret_cast<const uint4*>(Keys() + HeadTile::Offset(row, column));
    const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&chunk);
#pragma unroll
    for (int i = 0; i < kChunk / 2; ++i) {
      const float2 pair = __bfloat1622float2(pairs[i]);
      sums[2 * i] += pair.x;
      sums[2 * i + 1] += pair.y;
    }
  }
  __syncwarp();
  SumOverLanes<kLanes / 2, kLanesOfSum, kChunk>(sums);
  if (kLanesOfSum == 2) sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], 1);
  const int own = column + lane / kLanesOfSum;
  if (lane % kLanesOfSum != 0 || own >= in_.head_dim) return;
  in_.VSumPart(item_.b, item_.h, item_.block)[own] = sums[0];
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ADJOINT_DOTS_CUH_
