// SPDX-License-Identifier: Apache-2.0
//
// Layer normalisation, and RMS normalisation as the case without a mean: one
// pass over memory each way, rows in registers. The forward writes y and the
// statistics; the backward adds to d_x and leaves sums over the rows of each
// block, which a second kernel adds up in the order of blocks.

#ifndef CUBIT_OPS_CUDA_NORM_CUH_
#define CUBIT_OPS_CUDA_NORM_CUH_

#include <algorithm>
#include <cstdint>

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/cuda/row_group.cuh"

namespace cubit {
namespace cuda {

struct NormForwardArguments {
  const void* x;
  const float* weight;
  const float* bias;  // null: none
  int64_t num_rows;
  int dim;
  float eps;
  void* y;
  float* mean;  // unused without a mean
  float* rstd;
};

struct NormBackwardArguments {
  const void* d_y;
  const void* x;
  const float* weight;
  const float* mean;  // unused without a mean
  const float* rstd;
  int64_t num_rows;
  int dim;
  void* d_x;
  float* partial;  // [blocks, 2, dim]: sums for d_weight and d_bias
};

// Threads of a block. Elements by the pack are held in registers, which more
// threads would not leave enough of; rows too long for these go one by one.
constexpr int kMostWideThreads = 256;
template <int kWidth>
constexpr int kMostThreads = kWidth == 1 ? kMaxRowThreads : kMostWideThreads;

// Calls body(pack, column) for the packs of a row that this thread holds.
template <int kWidth, typename Body>
__device__ __forceinline__ void ForEachPack(const RowGroup& row, int dim,
                                            Body body) {
#pragma unroll
  for (int p = 0; p < kRowElements / kWidth; ++p) {
    const int column = (p * row.threads() + row.thread()) * kWidth;
    if (column < dim) body(p, column);
  }
}

// Mean and 1 / sqrt(variance + eps) of the row in `values`. The mean is taken
// twice: the second time of what the first leaves, so that the rounding of a
// large mean does not reach y; `shift` is what to subtract once `first_mean`
// was.
struct RowStatistics {
  float first_mean;
  float shift;
  float rstd;
};

template <typename T, int kWidth>
__device__ __forceinline__ RowStatistics
CenteredStatistics(const RowGroup& row, int dim, float eps,
                   const Pack<T, kWidth> (&values)[kRowElements / kWidth]) {
  float sum = 0;
  ForEachPack<kWidth>(row, dim, [&](int p, int) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += ToFloat(values[p].values[i]);
  });
  const float count = static_cast<float>(dim);
  RowStatistics statistics;
  statistics.first_mean = row.Sum(make_float2(sum, 0)).x / count;
  float2 rest = make_float2(0, 0);
  ForEachPack<kWidth>(row, dim, [&](int p, int) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float value = ToFloat(values[p].values[i]) - statistics.first_mean;
      rest.x += value;
      rest.y += value * value;
    }
  });
  rest = row.Sum(rest);
  statistics.shift = rest.x / count;
  const float variance =
      fmaxf(rest.y / count - statistics.shift * statistics.shift, 0.0f);
  // fmaxf drops NaN.
  statistics.rstd = 1.0f / sqrtf((isnan(rest.y) ? rest.y : variance) + eps);
  return statistics;
}

// The case without a mean; squares that leave fp32's range are taken in fp64.
template <typename T, int kWidth>
__device__ __forceinline__ float RootMeanSquareRstd(
    const RowGroup& row, int dim, float eps,
    const Pack<T, kWidth> (&values)[kRowElements / kWidth]) {
  float sum = 0;
  ForEachPack<kWidth>(row, dim, [&](int p, int) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float value = ToFloat(values[p].values[i]);
      sum += value * value;
    }
  });
  sum = row.Sum(make_float2(sum, 0)).x;
  const float count = static_cast<float>(dim);
  if (!isinf(sum)) return 1.0f / sqrtf(sum / count + eps);
  // Scaled by a power of two, exactly; eps is nothing beside such squares.
  constexpr float kScale = 0x1p-90f;
  float scaled = 0;
  ForEachPack<kWidth>(row, dim, [&](int p, int) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float value = kScale * ToFloat(values[p].values[i]);
      scaled += value * value;
    }
  });
  scaled = row.Sum(make_float2(scaled, 0)).x;
  return kScale / sqrtf(scaled / count);
}

template <typename T, int kWidth, bool kCentered>
__global__ void __launch_bounds__(kMostThreads<kWidth>)
    NormForwardKernel(NormForwardArguments a, RowLayout layout) {
  __shared__ float2 shared[kMaxRowThreads / kWarpSize];
  const RowGroup row(layout.threads_per_row, shared);
  const int64_t n =
      static_cast<int64_t>(blockIdx.x) * layout.rows_per_block + row.index();
  if (n >= a.num_rows) return;
  const T* x = static_cast<const T*>(a.x) + n * a.dim;
  T* y = static_cast<T*>(a.y) + n * a.dim;
  Pack<T, kWidth> values[kRowElements / kWidth];
  ForEachPack<kWidth>(row, a.dim, [&](int p, int column) {
    values[p] = LoadPack<T, kWidth>(x + column);
  });
  RowStatistics statistics = {0, 0, 0};
  if (kCentered) {
    statistics = CenteredStatistics<T, kWidth>(row, a.dim, a.eps, values);
  } else {
    statistics.rstd = RootMeanSquareRstd<T, kWidth>(row, a.dim, a.eps, values);
  }
  if (row.thread() == 0) {
    if (kCentered) a.mean[n] = statistics.first_mean + statistics.shift;
    a.rstd[n] = statistics.rstd;
  }
  ForEachPack<kWidth>(row, a.dim, [&](int p, int column) {
    const Pack<float, kWidth> weight =
        LoadPack<float, kWidth>(a.weight + column);
    Pack<float, kWidth> bias = {};
    if (a.bias != nullptr) bias = LoadPack<float, kWidth>(a.bias + column);
    Pack<T, kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      float value = ToFloat(values[p].values[i]);
      if (kCentered) value = value - statistics.first_mean - statistics.shift;
      result.values[i] = FromFloat<T>(
          value * statistics.rstd * weight.values[i] + bias.values[i]);
    }
    StorePack(result, y + column);
  });
}

// Sums over rows of d_y xhat and d_y, in this thread's columns.
template <int kWidth>
struct ColumnSums {
  Pack<float, kWidth> d_weight[kRowElements / kWidth];
  Pack<float, kWidth> d_bias[kRowElements / kWidth];
};

// One row of the backward: adds to d_x and to `sums`.
template <typename T, int kWidth, bool kCentered>
__device__ __forceinline__ void BackwardRow(const NormBackwardArguments& a,
                                            const RowGroup& row, int64_t n,
                                            ColumnSums<kWidth>* sums) {
  constexpr int kPacks = kRowElements / kWidth;
  const int64_t begin = n * a.dim;
  T* d_x = static_cast<T*>(a.d_x) + begin;
  const float mean = kCentered ? a.mean[n] : 0.0f;
  const float rstd = a.rstd[n];
  RawPack<T, kWidth> d_ys[kPacks];
  RawPack<T, kWidth> xs[kPacks];
  RawPack<T, kWidth> d_xs[kPacks];
  ForEachPack<kWidth>(row, a.dim, [&](int p, int column) {
    d_ys[p].Load(static_cast<const T*>(a.d_y) + begin + column);
    xs[p].Load(static_cast<const T*>(a.x) + begin + column);
    d_xs[p].Load(d_x + column);
  });
  float2 dots = make_float2(0, 0);  // of w d_y with 1 and with xhat
  ForEachPack<kWidth>(row, a.dim, [&](int p, int column) {
    const Pack<float, kWidth> weight =
        LoadPack<float, kWidth>(a.weight + column);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float d = d_ys[p].Get(i);
      const float xhat = (xs[p].Get(i) - mean) * rstd;
      const float scaled = d * weight.values[i];
      if (kCentered) {
        dots.x += scaled;
        sums->d_bias[p].values[i] += d;
      }
      dots.y += scaled * xhat;
      sums->d_weight[p].values[i] += d * xhat;
    }
    d_ys[p].Forget();
    xs[p].Forget();
  });
  dots = row.Sum(dots);
  const float count = static_cast<float>(a.dim);
  const float mean_scaled = dots.x / count;
  const float mean_product = dots.y / count;
  ForEachPack<kWidth>(row, a.dim, [&](int p, int column) {
    const Pack<float, kWidth> weight =
        LoadPack<float, kWidth>(a.weight + column);
    Pack<T, kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float xhat = (xs[p].Get(i) - mean) * rstd;
      const float scaled = d_ys[p].Get(i) * weight.values[i];
      const float d = rstd * (scaled - mean_scaled - xhat * mean_product);
      result.values[i] = FromFloat<T>(d_xs[p].Get(i) + d);
    }
    StorePack(result, d_x + column);
  });
}

// Rows n, n + stride, ... of each group; then the groups' sums, one after the
// other, in shared memory [2, dim] (where a block has more than one group).
template <typename T, int kWidth, bool kCentered>
__global__ void __maxnreg__(kWidth == 1 ? 64 : 168)
    NormBackwardKernel(NormBackwardArguments a, RowLayout layout) {
  extern __shared__ float combined[];
  __shared__ float2 shared[kMaxRowThreads / kWarpSize];
  const RowGroup row(layout.threads_per_row, shared);
  ColumnSums<kWidth> sums = {};
  const int64_t stride =
      static_cast<int64_t>(gridDim.x) * layout.rows_per_block;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * layout.rows_per_block +
                   row.index();
       n < a.num_rows; n += stride) {
    BackwardRow<T, kWidth, kCentered>(a, row, n, &sums);
  }
  float* target = a.partial + static_cast<int64_t>(blockIdx.x) * 2 * a.dim;
  for (int group = 0; group < layout.rows_per_block; ++group) {
    const bool last = group + 1 == layout.rows_per_block;
    if (row.index() == group) {
      ForEachPack<kWidth>(row, a.dim, [&](int p, int column) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          float d_weight = sums.d_weight[p].values[i];
          float d_bias = sums.d_bias[p].values[i];
          if (group > 0) {
            d_weight += combined[column + i];
            d_bias += combined[a.dim + column + i];
          }
          float* to = last ? target : combined;
          to[column + i] = d_weight;
          to[a.dim + column + i] = d_bias;
        }
      });
    }
    __syncthreads();
  }
}

template <typename T, bool kCentered>
void LaunchNormForward(const NormForwardArguments& a, Stream& stream) {
  if (a.num_rows == 0) return;
  constexpr int kWidth = kVectorWidth<T>;
  const RowLayout layout = MakeRowLayout(a.dim);
  const bool wide = a.dim % kWidth == 0 &&
                    layout.threads_per_block <= kMostWideThreads &&
                    IsAligned16(a.x) && IsAligned16(a.y) &&
                    IsAligned16(a.weight) && IsAligned16(a.bias);
  const auto kernel = wide ? &NormForwardKernel<T, kWidth, kCentered>
                           : &NormForwardKernel<T, 1, kCentered>;
  kernel<<<CeilDivide(a.num_rows, layout.rows_per_block),
           layout.threads_per_block, 0, CudaStream(stream)>>>(a, layout);
  CUBIT_CUDA_CHECK_LAUNCH();
}

// d_bias may be null.
template <typename T, bool kCentered>
void LaunchNormBackward(NormBackwardArguments a, float* d_weight, float* d_bias,
                        Stream& stream) {
  if (a.num_rows == 0) return;
  constexpr int kWidth = kVectorWidth<T>;
  const RowLayout layout = MakeRowLayout(a.dim);
  const bool wide = a.dim % kWidth == 0 &&
                    layout.threads_per_block <= kMostWideThreads &&
                    IsAligned16(a.x) && IsAligned16(a.d_y) &&
                    IsAligned16(a.d_x) && IsAligned16(a.weight);
  const auto kernel = wide ? &NormBackwardKernel<T, kWidth, kCentered>
                           : &NormBackwardKernel<T, 1, kCentered>;
  const int shared_bytes = layout.rows_per_block > 1
                               ? 2 * a.dim * static_cast<int>(sizeof(float))
                               : 0;
  int blocks_per_multiprocessor = 0;
  CUBIT_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &blocks_per_multiprocessor, kernel, layout.threads_per_block,
      static_cast<size_t>(shared_bytes)));
  const int blocks =
      std::min(CeilDivide(a.num_rows, layout.rows_per_block),
               NumMultiprocessors() * std::max(1, blocks_per_multiprocessor));
  a.partial = static_cast<float*>(CudaWorkspace(
      int64_t{blocks} * 2 * a.dim * int64_t{sizeof(float)}, stream));
  kernel<<<blocks, layout.threads_per_block, shared_bytes,
           CudaStream(stream)>>>(a, layout);
  CUBIT_CUDA_CHECK_LAUNCH();
  AddPartialSums(a.partial, blocks, 2 * int64_t{a.dim}, a.dim, d_weight, d_bias,
                 stream);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_NORM_CUH_
