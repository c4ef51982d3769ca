// SPDX-License-Identifier: Apache-2.0
//
// Gradients of what every row shares: sums over rows in two steps, each in an
// order that the shape alone fixes (and the number of multiprocessors).

#ifndef CUBIT_OPS_CUDA_COLUMN_SUMS_CUH_
#define CUBIT_OPS_CUDA_COLUMN_SUMS_CUH_

#include <algorithm>
#include <cstdint>

#include "ops/cuda/memory_pass.cuh"

namespace cubit {
namespace cuda {

constexpr int kSumColumns = 32;
constexpr int kSumRows = 32;

// What the sums of kSums matrices are added to; null: that one is skipped.
template <int kSums>
struct SumTargets {
  float* sums[kSums];
};

// The second step: of partial [num_rows, kSums, num_columns], sums[k][j] +=
// partial[0, k, j] + partial[1, k, j] + ..., k = blockIdx.y. A block of
// kSumColumns x kSumRows threads.
template <int kSums>
__global__ void AddPartialSumsKernel(
    const float* partial, int num_rows, int num_columns,
    const __grid_constant__ SumTargets<kSums> targets) {
  float* sum = targets.sums[blockIdx.y];
  if (sum == nullptr) return;
  partial += static_cast<int64_t>(blockIdx.y) * num_columns;
  const int64_t stride = int64_t{kSums} * num_columns;
  __shared__ float shared[kSumRows][kSumColumns + 1];
  const int first = static_cast<int>(blockIdx.x) * kSumColumns;
  const int column = first + static_cast<int>(threadIdx.x);
  float total = 0;
  if (column < num_columns) {
#pragma unroll 8
    for (int n = static_cast<int>(threadIdx.y); n < num_rows; n += kSumRows) {
      total += partial[n * stride + column];
    }
  }
  shared[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  // Warp y adds up column y: lane r has the part of rows r, r + kSumRows, ...
  total = WarpSum(shared[threadIdx.x][threadIdx.y]);
  const int result = first + static_cast<int>(threadIdx.y);
  if (threadIdx.x == 0 && result < num_columns) sum[result] += total;
}

template <int kSums>
void AddPartialSums(const float* partial, int num_rows, int num_columns,
                    const SumTargets<kSums>& targets, Stream& stream) {
  const dim3 grid(CeilDivide(num_columns, kSumColumns), kSums);
  AddPartialSumsKernel<<<grid, dim3(kSumColumns, kSumRows), 0,
                         CudaStream(stream)>>>(partial, num_rows, num_columns,
                                               targets);
  CUBIT_CUDA_CHECK_LAUNCH();
}

constexpr int kColumnSumThreads = 256;
constexpr int kColumnSumWarps = kColumnSumThreads / kWarpSize;

// Rows that are summed as they lie in memory. Rows of another kind have the
// same members; Add may also write what it computes.
template <typename T, int kElements>
struct StoredRows {
  static constexpr int kWidth = kElements;  // adjacent elements of a lane
  static constexpr int kInFlight = 4;       // rows a warp loads at a time
  using Loaded = RawPack<T, kWidth>;

  const T* x;

  __device__ __forceinline__ void Load(int64_t offset, Loaded* loaded) const {
    loaded->Load(x + offset);
  }
  __device__ __forceinline__ void Add(const Loaded& loaded, int64_t,
                                      float (&sums)[kWidth]) const {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums[i] += loaded.Get(i);
  }
};

// The first step: partial[blockIdx.y, j] = sum of column j over the block's
// rows. A lane has kWidth columns, a warp every kColumnSumWarps-th row. Four
// blocks a multiprocessor have enough loads on their way.
template <typename Rows>
__global__ void __launch_bounds__(kColumnSumThreads)
    PartialColumnSumsKernel(Rows rows, int64_t num_rows, int num_columns,
                            int64_t row_stride, int64_t rows_per_block,
                            float* partial) {
  constexpr int kWidth = Rows::kWidth;
  constexpr int kInFlight = Rows::kInFlight;
  __shared__ float shared[kColumnSumWarps][kWarpSize * kWidth];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int first = static_cast<int>(blockIdx.x) * kWarpSize * kWidth;
  const int column = first + lane * kWidth;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * rows_per_block;
  const int64_t end =
      begin + rows_per_block < num_rows ? begin + rows_per_block : num_rows;
  float sums[kWidth] = {};
  if (column < num_columns) {
    const int64_t step = int64_t{kColumnSumWarps} * row_stride;
    int64_t offset = (begin + warp) * row_stride + column;
    int left = static_cast<int>((end - begin - warp + kColumnSumWarps - 1) /
                                kColumnSumWarps);
    for (; left > 0; left -= kInFlight, offset += kInFlight * step) {
      typename Rows::Loaded loaded[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        if (k < left) rows.Load(offset + k * step, &loaded[k]);
      }
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        if (k < left) rows.Add(loaded[k], offset + k * step, sums);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) shared[warp][lane * kWidth + i] = sums[i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kWarpSize * kWidth;
       i += kColumnSumThreads) {
    if (first + i >= num_columns) break;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kColumnSumWarps; ++w) total += shared[w][i];
    partial[static_cast<int64_t>(blockIdx.y) * num_columns + first + i] = total;
  }
}

// sum[j] += the sum of column j of `rows`, [num_rows, num_columns], at least
// one of each; a row begins row_stride elements behind the one before.
template <typename Rows>
void AddSumsOfRows(const Rows& rows, int64_t num_rows, int64_t num_columns,
                   int64_t row_stride, float* sum, Stream& stream) {
  constexpr int kBlocksPerMultiprocessor = 8;
  const int slices = CeilDivide(num_columns, int64_t{kWarpSize} * Rows::kWidth);
  const int64_t wanted = std::max<int64_t>(
      1, NumMultiprocessors() * kBlocksPerMultiprocessor / slices);
  const int64_t rows_per_block =
      std::max<int64_t>(CeilDivide(num_rows, wanted), kColumnSumWarps);
  const int parts = CeilDivide(num_rows, rows_per_block);
  float* partial = static_cast<float*>(
      CudaWorkspace(parts * num_columns * int64_t{sizeof(float)}, stream));
  const dim3 grid(static_cast<unsigned>(slices), static_cast<unsigned>(parts));
  PartialColumnSumsKernel<<<grid, kColumnSumThreads, 0, CudaStream(stream)>>>(
      rows, num_rows, static_cast<int>(num_columns), row_stride, rows_per_block,
      partial);
  CUBIT_CUDA_CHECK_LAUNCH();
  AddPartialSums(partial, parts, static_cast<int>(num_columns),
                 SumTargets<1>{{sum}}, stream);
}

// sum[j] += the sum of x[n * row_stride + j] over n < num_rows, for j <
// num_columns.
template <typename T>
void AddColumnSums(const T* x, int64_t num_rows, int64_t num_columns,
                   int64_t row_stride, float* sum, Stream& stream) {
  constexpr int kWide = kVectorWidth<T>;
  if (num_columns % kWide == 0 && row_stride % kWide == 0 && IsAligned16(x)) {
    AddSumsOfRows(StoredRows<T, kWide>{x}, num_rows, num_columns, row_stride,
                  sum, stream);
  } else {
    AddSumsOfRows(StoredRows<T, 1>{x}, num_rows, num_columns, row_stride, sum,
                  stream);
  }
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_COLUMN_SUMS_CUH_
