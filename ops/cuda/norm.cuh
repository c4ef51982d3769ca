// SPDX-License-Identifier: Apache-2.0
//
// Layer normalisation, and RMS normalisation as the case without a mean: one
// pass over memory each way, rows in registers. The forward writes y and the
// statistics; the backward adds to d_x and leaves sums over the rows of each
// block, of d_x too, which a second kernel adds up in the order of blocks.

#ifndef CUBIT_OPS_CUDA_NORM_CUH_
#define CUBIT_OPS_CUDA_NORM_CUH_

#include <algorithm>
#include <cstdint>

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/cuda/pairs.cuh"
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
  float one_over_dim;  // set by the launch, as is what follows
  float* partial;      // [blocks, kNormSums, dim]
};

// What the backward sums over rows: d_y xhat, which is the gradient of the
// weight; d_x as it is stored; and, where there is a mean, d_y, the gradient of
// the bias.
constexpr int kWeightSum = 0;
constexpr int kInputSum = 1;
constexpr int kBiasSum = 2;
template <bool kCentered>
constexpr int kNormSums = kCentered ? 3 : 2;

// Elements of a row that a thread holds at most. The backward holds two rows of
// d_y, x and d_x, the weights and the sums, in 160 registers; blocks of many
// threads have fewer, and spill.
constexpr int kForwardElements = 32;
template <typename T, int kWidth>
constexpr int kBackwardElements = kWidth == 1
                                      ? 32
                                      : 32 / static_cast<int>(sizeof(T));

// Threads of a block that registers are left for.
template <int kWidth>
constexpr int kMostForwardThreads = kWidth == 1 ? kMaxRowThreads : 256;
// Of the backward: rows of at most so many elements by the pack leave registers
// for all that a thread holds, longer ones for less.
constexpr int kShortRowThreads = 256;
constexpr int kLongRowThreads = 512;
template <int kMostThreads>
constexpr int kBackwardRegisters =
    kMostThreads == kShortRowThreads ? 168 : 65536 / kMostThreads;

// Calls body(pack, column) for the packs of a row that this thread holds.
template <int kPacks, int kWidth, typename Body>
__device__ __forceinline__ void ForEachPack(const RowGroup& row, int dim,
                                            Body body) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = (p * row.threads() + row.thread()) * kWidth;
    if (column < dim) body(p, column);
  }
}

// `values` as elements of T: two at a time, which takes one instruction.
template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> Rounded(
    const float (&values)[kWidth]) {
  Pack<T, kWidth> result;
  if constexpr (kWidth == 1) {
    result.values[0] = FromFloat<T>(values[0]);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) {
      StorePair(result.values + i, values[i], values[i + 1]);
    }
  }
  return result;
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

template <typename T, int kWidth, int kPacks>
__device__ __forceinline__ RowStatistics
CenteredStatistics(const RowGroup& row, int dim, float eps,
                   RawPack<T, kWidth> (&values)[kPacks]) {
  float sum = 0;
  ForEachPack<kPacks, kWidth>(row, dim, [&](int p, int) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += values[p].Get(i);
    values[p].Forget();
  });
  const float count = static_cast<float>(dim);
  RowStatistics statistics;
  statistics.first_mean = row.Sum(make_float2(sum, 0)).x / count;
  float2 rest = make_float2(0, 0);
  ForEachPack<kPacks, kWidth>(row, dim, [&](int p, int) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float value = values[p].Get(i) - statistics.first_mean;
      rest.x += value;
      rest.y += value * value;
    }
    values[p].Forget();
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
template <typename T, int kWidth, int kPacks>
__device__ __forceinline__ float RootMeanSquareRstd(
    const RowGroup& row, int dim, float eps,
    RawPack<T, kWidth> (&values)[kPacks]) {
  float sum = 0;
  ForEachPack<kPacks, kWidth>(row, dim, [&](int p, int) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float value = values[p].Get(i);
      sum += value * value;
    }
    values[p].Forget();
  });
  sum = row.Sum(make_float2(sum, 0)).x;
  const float count = static_cast<float>(dim);
  if (!isinf(sum)) return 1.0f / sqrtf(sum / count + eps);
  // Scaled by a power of two, exactly; eps is nothing beside such squares.
  constexpr float kScale = 0x1p-90f;
  float scaled = 0;
  ForEachPack<kPacks, kWidth>(row, dim, [&](int p, int) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float value = kScale * values[p].Get(i);
      scaled += value * value;
    }
  });
  scaled = row.Sum(make_float2(scaled, 0)).x;
  return kScale / sqrtf(scaled / count);
}

template <typename T, int kWidth, bool kCentered>
__global__ void __launch_bounds__(kMostForwardThreads<kWidth>)
    NormForwardKernel(NormForwardArguments a, RowLayout layout) {
  constexpr int kPacks = kForwardElements / kWidth;
  __shared__ float2 shared[kMaxRowThreads / kWarpSize];
  const RowGroup row(layout.threads_per_row, shared);
  const int64_t n =
      static_cast<int64_t>(blockIdx.x) * layout.rows_per_block + row.index();
  if (n >= a.num_rows) return;
  const T* x = static_cast<const T*>(a.x) + n * a.dim;
  T* y = static_cast<T*>(a.y) + n * a.dim;
  RawPack<T, kWidth> values[kPacks];
  ForEachPack<kPacks, kWidth>(
      row, a.dim, [&](int p, int column) { values[p].Load(x + column); });
  RowStatistics statistics = {0, 0, 0};
  if (kCentered) {
    statistics = CenteredStatistics(row, a.dim, a.eps, values);
  } else {
    statistics.rstd = RootMeanSquareRstd(row, a.dim, a.eps, values);
  }
  if (row.thread() == 0) {
    if (kCentered) a.mean[n] = statistics.first_mean + statistics.shift;
    a.rstd[n] = statistics.rstd;
  }
  ForEachPack<kPacks, kWidth>(row, a.dim, [&](int p, int column) {
    const Pack<float, kWidth> weight =
        LoadPack<float, kWidth>(a.weight + column);
    Pack<float, kWidth> bias = {};
    if (a.bias != nullptr) bias = LoadPack<float, kWidth>(a.bias + column);
    float results[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      float value = values[p].Get(i);
      if (kCentered) value = value - statistics.first_mean - statistics.shift;
      results[i] = value * statistics.rstd * weight.values[i] + bias.values[i];
    }
    StorePack(Rounded<T>(results), y + column);
  });
}

// What a thread holds of one row of the backward.
template <typename T, int kWidth, int kPacks>
struct BackwardRow {
  RawPack<T, kWidth> d_y[kPacks];
  RawPack<T, kWidth> x[kPacks];
  RawPack<T, kWidth> d_x[kPacks];
  float mean;
  float rstd;
};

template <bool kCentered, typename T, int kWidth, int kPacks>
__device__ __forceinline__ void LoadRow(
    const NormBackwardArguments& a, const RowGroup& row, int64_t n,
    BackwardRow<T, kWidth, kPacks>* values) {
  const int64_t begin = n * a.dim;
  ForEachPack<kPacks, kWidth>(row, a.dim, [&](int p, int column) {
    values->d_y[p].Load(static_cast<const T*>(a.d_y) + begin + column);
    values->x[p].Load(static_cast<const T*>(a.x) + begin + column);
    values->d_x[p].Load(static_cast<const T*>(a.d_x) + begin + column);
  });
  values->mean = kCentered ? a.mean[n] : 0.0f;
  values->rstd = a.rstd[n];
}

// Sums over rows (kNormSums), in this thread's columns.
template <bool kCentered, int kWidth, int kPacks>
struct ColumnSums {
  Pack<float, kWidth> packs[kNormSums<kCentered>][kPacks];
};

// One row of the backward: adds to d_x and to `sums`. `weights`: of this
// thread's columns, the same for all rows.
template <bool kCentered, typename T, int kWidth, int kPacks>
__device__ __forceinline__ void AddRow(
    const NormBackwardArguments& a, const RowGroup& row, int64_t n,
    BackwardRow<T, kWidth, kPacks> values,
    const Pack<float, kWidth> (&weights)[kPacks],
    ColumnSums<kCentered, kWidth, kPacks>* sums) {
  float2 dots = make_float2(0, 0);  // of w d_y with 1 and with xhat
  ForEachPack<kPacks, kWidth>(row, a.dim, [&](int p, int column) {
    const Pack<float, kWidth>& weight = weights[p];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float d = values.d_y[p].Get(i);
      const float xhat = (values.x[p].Get(i) - values.mean) * values.rstd;
      const float scaled = d * weight.values[i];
      dots.y += scaled * xhat;
      sums->packs[kWeightSum][p].values[i] += d * xhat;
      if constexpr (kCentered) {
        dots.x += scaled;
        sums->packs[kBiasSum][p].values[i] += d;
      }
    }
    values.d_y[p].Forget();
    values.x[p].Forget();
  });
  dots = row.Sum(dots);
  const float mean_scaled = dots.x * a.one_over_dim;
  const float slope = dots.y * a.one_over_dim * values.rstd;
  T* d_x = static_cast<T*>(a.d_x) + n * a.dim;
  ForEachPack<kPacks, kWidth>(row, a.dim, [&](int p, int column) {
    const Pack<float, kWidth>& weight = weights[p];
    float results[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float scaled = values.d_y[p].Get(i) * weight.values[i];
      const float d =
          scaled - mean_scaled - (values.x[p].Get(i) - values.mean) * slope;
      results[i] = values.d_x[p].Get(i) + values.rstd * d;
    }
    const Pack<T, kWidth> stored = Rounded<T>(results);
    StorePack(stored, d_x + column);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sums->packs[kInputSum][p].values[i] += ToFloat(stored.values[i]);
    }
  });
}

// The block's sums to `target` [kNormSums, dim]: those of the first group, to
// which it adds the others' in their order. They leave them in `others` [groups
// - 1, kNormSums, dim], shared memory.
template <bool kCentered, int kWidth, int kPacks>
__device__ __forceinline__ void StoreSumsOfBlock(
    const RowGroup& row, int num_groups, int dim,
    const ColumnSums<kCentered, kWidth, kPacks>& sums, float* others,
    float* target) {
  constexpr int kSums = kNormSums<kCentered>;
  const auto for_each_sum = [&](auto body) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      ForEachPack<kPacks, kWidth>(row, dim, [&](int p, int column) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          body(k * dim + column + i, sums.packs[k][p].values[i]);
        }
      });
    }
  };
  if (row.index() > 0) {
    float* slot = others + (row.index() - 1) * kSums * dim;
    for_each_sum([&](int place, float sum) { slot[place] = sum; });
  }
  __syncthreads();
  if (row.index() > 0) return;
  for_each_sum([&](int place, float sum) {
    for (int group = 1; group < num_groups; ++group) {
      sum += others[(group - 1) * kSums * dim + place];
    }
    target[place] = sum;
  });
}

// Rows n, n + stride, ... of each group, each loaded while the one before is
// computed; then their sums.
template <typename T, int kWidth, int kMostThreads, bool kCentered>
__global__ void __maxnreg__(kBackwardRegisters<kMostThreads>)
    NormBackwardKernel(NormBackwardArguments a, RowLayout layout) {
  constexpr int kPacks = kBackwardElements<T, kWidth> / kWidth;
  extern __shared__ float others[];
  __shared__ float2 shared[kMaxRowThreads / kWarpSize];
  const RowGroup row(layout.threads_per_row, shared);
  ColumnSums<kCentered, kWidth, kPacks> sums = {};
  const int num_rows = static_cast<int>(a.num_rows);
  const int stride = static_cast<int>(gridDim.x) * layout.rows_per_block;
  int n = static_cast<int>(blockIdx.x) * layout.rows_per_block + row.index();
  Pack<float, kWidth> weights[kPacks] = {};
  ForEachPack<kPacks, kWidth>(row, a.dim, [&](int p, int column) {
    weights[p] = LoadPack<float, kWidth>(a.weight + column);
  });
  BackwardRow<T, kWidth, kPacks> values;
  if (n < num_rows) LoadRow<kCentered>(a, row, n, &values);
  while (n < num_rows) {
    const int next_n = n + stride;
    BackwardRow<T, kWidth, kPacks> next;
    // Whether or not there is one, so that no registers are merged: the last
    // row is loaded twice.
    LoadRow<kCentered>(a, row, next_n < num_rows ? next_n : n, &next);
    AddRow(a, row, n, values, weights, &sums);
    values = next;
    n = next_n;
  }
  StoreSumsOfBlock(row, layout.rows_per_block, a.dim, sums, others,
                   a.partial + static_cast<int64_t>(blockIdx.x) *
                                   kNormSums<kCentered> * a.dim);
}

template <typename T, bool kCentered>
void LaunchNormForward(const NormForwardArguments& a, Stream& stream) {
  if (a.num_rows == 0) return;
  constexpr int kWidth = kVectorWidth<T>;
  const RowLayout layout = MakeRowLayout(a.dim, kForwardElements);
  const bool wide = a.dim % kWidth == 0 &&
                    layout.threads_per_block <= kMostForwardThreads<kWidth> &&
                    IsAligned16(a.x) && IsAligned16(a.y) &&
                    IsAligned16(a.weight) && IsAligned16(a.bias);
  const auto kernel = wide ? &NormForwardKernel<T, kWidth, kCentered>
                           : &NormForwardKernel<T, 1, kCentered>;
  kernel<<<CeilDivide(a.num_rows, layout.rows_per_block),
           layout.threads_per_block, 0, CudaStream(stream)>>>(a, layout);
  CUBIT_CUDA_CHECK_LAUNCH();
}

template <typename T, int kWidth, int kMostThreads, bool kCentered>
void LaunchNormBackwardBy(NormBackwardArguments a,
                          const SumTargets<kNormSums<kCentered>>& targets,
                          Stream& stream) {
  constexpr int kSums = kNormSums<kCentered>;
  const auto kernel = &NormBackwardKernel<T, kWidth, kMostThreads, kCentered>;
  const RowLayout layout = MakeRowLayout(a.dim, kBackwardElements<T, kWidth>);
  const int shared_bytes = (layout.rows_per_block - 1) * kSums * a.dim *
                           static_cast<int>(sizeof(float));
  int blocks_per_multiprocessor = 0;
  CUBIT_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &blocks_per_multiprocessor, kernel, layout.threads_per_block,
      static_cast<size_t>(shared_bytes)));
  const int blocks =
      std::min(CeilDivide(a.num_rows, layout.rows_per_block),
               NumMultiprocessors() * std::max(1, blocks_per_multiprocessor));
  a.one_over_dim = 1.0f / static_cast<float>(a.dim);
  a.partial = static_cast<float*>(CudaWorkspace(
      int64_t{blocks} * kSums * a.dim * int64_t{sizeof(float)}, stream));
  kernel<<<blocks, layout.threads_per_block, shared_bytes,
           CudaStream(stream)>>>(a, layout);
  CUBIT_CUDA_CHECK_LAUNCH();
  AddPartialSums(a.partial, blocks, a.dim, targets, stream);
}

// Targets in the order of kWeightSum, kInputSum, kBiasSum; null: not wanted.
template <typename T, bool kCentered>
void LaunchNormBackward(const NormBackwardArguments& a,
                        const SumTargets<kNormSums<kCentered>>& targets,
                        Stream& stream) {
  if (a.num_rows == 0) return;
  // The kernel counts rows in 32 bits, and a block's step beyond the last.
  CUBIT_CHECK(a.num_rows < int64_t{1} << 30) << a.num_rows;
  constexpr int kWidth = kVectorWidth<T>;
  constexpr int kElements = kBackwardElements<T, kWidth>;
  const bool wide = a.dim % kWidth == 0 && IsAligned16(a.x) &&
                    IsAligned16(a.d_y) && IsAligned16(a.d_x) &&
                    IsAligned16(a.weight);
  if (wide && a.dim <= kShortRowThreads * kElements) {
    LaunchNormBackwardBy<T, kWidth, kShortRowThreads, kCentered>(a, targets,
                                                                 stream);
  } else if (wide && a.dim <= kLongRowThreads * kElements) {
    LaunchNormBackwardBy<T, kWidth, kLongRowThreads, kCentered>(a, targets,
                                                                stream);
  } else {
    LaunchNormBackwardBy<T, 1, kMaxRowThreads, kCentered>(a, targets, stream);
  }
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_NORM_CUH_
