// SPDX-License-Identifier: Apache-2.0
//
// What compute-sanitizer's racecheck (CUDA 13.0) makes of barriers that one
// warp reports to (bar.arrive) and others wait at (bar.sync). A block takes
// items in turn: all threads write a tile, every warp reads its 16 rows, all
// write the tile again, the warps add to their rows one behind the other; a
// __syncthreads stands between all of these. In Chain<false> the warps' order
// is kept by __syncthreads, too: no report. In Chain<true> it is kept by named
// barriers, as in the solves of triangular_solve.cuh, and writes of the tile
// are reported against reads before and behind a __syncthreads, far from the
// chain: once warps have waited at other barriers, the tool takes accesses on
// both sides of the block's for concurrent (docs/performance.md).
//
//   nvcc -std=c++17 -O3 -lineinfo -arch=sm_90 docs/racecheck_chain.cu -o chain
//   compute-sanitizer --tool racecheck ./chain

#include <cstdio>

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kColumns = 32;
constexpr int kRows = 16 * kWarps;
constexpr int kTile = kRows * kColumns;
constexpr int kItems = 640;
constexpr int kBlocks = 132;

__device__ __noinline__ void WriteTile(float* tile, const float* rows) {
  for (int i = threadIdx.x; i < kTile; i += kThreads) tile[i] = rows[i];
}

__device__ __forceinline__ float SumRows(const float* tile, int warp) {
  float sum = 0;
  for (int row = 16 * warp; row < 16 * warp + 16; ++row) {
    sum += tile[row * kColumns + threadIdx.x % 32];
  }
  return sum;
}

__device__ __forceinline__ void AddToRows(float* tile, int warp, float sum) {
  for (int row = 16 * warp; row < 16 * warp + 16; ++row) {
    tile[row * kColumns + threadIdx.x % 32] += sum;
  }
}

// Each warp adds to its rows, then those behind it read them.
template <bool kNamed>
__device__ __forceinline__ float AddInTurn(float* tile, int warp, float sum) {
#pragma unroll
  for (int turn = 0; turn < kWarps; ++turn) {
    const int barrier = 1 + turn;
    const int threads = 32 * (kWarps - turn);
    if (warp == turn) {
      AddToRows(tile, warp, sum);
      if (kNamed && turn < kWarps - 1) {
        asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads)
                     : "memory");
      }
    }
    if (!kNamed) __syncthreads();
    if (warp > turn) {
      if (kNamed) {
        asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads)
                     : "memory");
      }
      sum += SumRows(tile, turn);
    }
  }
  return sum;
}

template <bool kNamed>
__global__ void Chain(const float* rows, float* sums) {
  __shared__ float tile[kTile];
  const int warp = threadIdx.x / 32;
  for (int item = blockIdx.x; item < kItems; item += gridDim.x) {
    WriteTile(tile, rows + item * kTile);
    __syncthreads();
    float sum = SumRows(tile, warp);
    __syncthreads();
    WriteTile(tile, rows + item * kTile);
    __syncthreads();
    sum = AddInTurn<kNamed>(tile, warp, sum);
    sums[item * kThreads + threadIdx.x] = sum;
    __syncthreads();
  }
}

int main() {
  float* rows = nullptr;
  float* sums = nullptr;
  cudaMalloc(&rows, sizeof(float) * kItems * kTile);
  cudaMalloc(&sums, sizeof(float) * kItems * kThreads);
  cudaMemset(rows, 0, sizeof(float) * kItems * kTile);
  Chain<false><<<kBlocks, kThreads>>>(rows, sums);
  Chain<true><<<kBlocks, kThreads>>>(rows, sums);
  std::printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
  return 0;
}
