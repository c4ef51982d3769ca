// SPDX-License-Identifier: Apache-2.0
//
// What a row has summed over the columns of the chunks so far
// (chunk_arguments.h), in registers: read from memory, gone on with, written
// back.

#ifndef CUBIT_OPS_CUDA_CHUNK_RUNNING_ROWS_CUH_
#define CUBIT_OPS_CUDA_CHUNK_RUNNING_ROWS_CUH_

#include <cmath>
#include <cstdint>

#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_pair.cuh"
#include "ops/cuda/chunk_tiles.cuh"
#include "ops/cuda/pairs.cuh"

namespace cubit {
namespace cuda {

// Running sums of a lane's two rows.
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

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_RUNNING_ROWS_CUH_
