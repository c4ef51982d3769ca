// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstdint>

#include "absl/types/span.h"

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/head_views.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/cuda/rotation.cuh"
#include "ops/rotary.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

using cuda::Angles;
using cuda::HeadRows;
using cuda::RawPack;

constexpr int kThreads = 256;

__global__ void TableKernel(double base, int64_t num_positions, int head_dim,
                            float* table) {
  const int half = head_dim / 2;
  const int64_t index =
      static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= num_positions * half) return;
  const int64_t t = index / half;
  const int i = static_cast<int>(index % half);
  const double angle = static_cast<double>(t) * pow(base, -2.0 * i / head_dim);
  table[t * head_dim + i] = static_cast<float>(cos(angle));
  table[t * head_dim + half + i] = static_cast<float>(sin(angle));
}

template <typename T>
struct RotateArguments {
  HeadRows<T> views[kMaxRotaryViews];  // of equal extents
  const float* angles;                 // of the first position
  float direction;
  int num_heads;
  unsigned vectors;  // of half a row
  unsigned count;    // threads of a sequence that have work
};

// Adjacent elements of both halves of a row.
template <typename T, int kWidth>
struct PairsOfRow {
  RawPack<T, kWidth> low, high;

  __device__ __forceinline__ void Load(const T* row, int half) {
    low.Load(row);
    high.Load(row + half);
  }
};

// Stores `pairs`, turned, where `row` and `half` behind are; what is stored
// goes to note(i, low element, high element).
template <typename T, int kWidth, typename Note>
__device__ __forceinline__ void StoreTurned(const Angles<kWidth>& angles,
                                            const PairsOfRow<T, kWidth>& pairs,
                                            T* row, int half,
                                            const Note& note) {
  cuda::Pack<T, kWidth> low, high;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    float a = pairs.low.Get(i);
    float b = pairs.high.Get(i);
    angles.Turn(i, &a, &b);
    low.values[i] = cuda::FromFloat<T>(a);
    high.values[i] = cuda::FromFloat<T>(b);
    note(i, low.values[i], high.values[i]);
  }
  cuda::StorePack(low, row);
  cuda::StorePack(high, row + half);
}

// Turns kWidth pairs (x_i, x_{i + K/2}) of one head. Grid: a sequence, batch,
// views. Heads run fastest, so that a warp has neighbouring rows: several heads
// a thread, whose angles are then read once, took 10% to 25% longer.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    RotateKernel(const __grid_constant__ RotateArguments<T> in) {
  const unsigned index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= in.count) return;
  const HeadRows<T>& x = in.views[blockIdx.z];
  const int half = x.head_dim / 2;
  const int column = static_cast<int>(index % in.vectors) * kWidth;
  const unsigned row = index / in.vectors;
  const unsigned num_heads = static_cast<unsigned>(in.num_heads);
  const int h = static_cast<int>(row % num_heads);
  const int t = static_cast<int>(row / num_heads);
  T* const low = x.Row(static_cast<int>(blockIdx.y), t, h) + column;
  PairsOfRow<T, kWidth> pairs;
  pairs.Load(low, half);
  Angles<kWidth> angles;
  angles.Load(in.angles + static_cast<int64_t>(t) * x.head_dim, half, column,
              in.direction);
  StoreTurned(angles, pairs, low, half, [](int, T, T) {});
}

// Tokens of a sequence that a block of RotateAndSumKernel has.
constexpr int kTokens = 64;

// Turns the pairs at `row`, and at the `count` rows in all that follow each
// other at a distance of `step` tokens, `angles_row` being the first one's
// angles. Adds what it stores to `sums`: first halves, then second.
template <typename T, int kWidth>
__device__ __forceinline__ void TurnTokens(const HeadRows<T>& x,
                                           const float* angles_row,
                                           float direction, T* row, int column,
                                           int count, int step,
                                           float (&sums)[2 * kWidth]) {
  constexpr int kInFlight = 2;  // rows
  const int half = x.head_dim / 2;
  const int64_t stride = step * x.seq_stride;
  for (; count > 0; count -= kInFlight) {
    PairsOfRow<T, kWidth> pairs[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (k < count) pairs[k].Load(row + k * stride, half);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (k < count) {
        Angles<kWidth> angles;
        angles.Load(angles_row, half, column, direction);
        StoreTurned(angles, pairs[k], row, half, [&sums](int i, T low, T high) {
          sums[i] += cuda::ToFloat(low);
          sums[kWidth + i] += cuda::ToFloat(high);
        });
      }
      row += stride;
      angles_row += step * x.head_dim;
    }
  }
}

// RotateKernel, which also writes the sums over each kTokens tokens to parts
// [B, ceil(T / kTokens), kMaxRotaryViews, H, K]. A thread has the same columns
// of one head in every blockDim.y-th token. Grid: parts of a sequence, batch,
// views * `slices` of the threads that a token takes.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, 3)
    RotateAndSumKernel(const __grid_constant__ RotateArguments<T> in,
                       int slices, float* parts) {
  __shared__ float shared[2 * kWidth][kThreads];
  const int view = static_cast<int>(blockIdx.z) / slices;
  const HeadRows<T>& x = in.views[view];
  const int vectors = static_cast<int>(in.vectors);
  const int width = static_cast<int>(blockDim.x);
  const int lane = static_cast<int>(blockIdx.z) % slices * width +
                   static_cast<int>(threadIdx.x);
  const bool has_columns = lane < in.num_heads * vectors;
  const int h = lane / vectors;
  const int column = lane % vectors * kWidth;
  float sums[2 * kWidth] = {};
  if (has_columns) {
    const int step = static_cast<int>(blockDim.y);
    const int begin = static_cast<int>(blockIdx.x) * kTokens;
    const int first = begin + static_cast<int>(threadIdx.y);
    const int left = min(begin + kTokens, x.seq_len) - first;
    TurnTokens<T, kWidth>(
        x, in.angles + static_cast<int64_t>(first) * x.head_dim, in.direction,
        x.Row(static_cast<int>(blockIdx.y), first, h) + column, column,
        (left + step - 1) / step, step, sums);
  }
#pragma unroll
  for (int i = 0; i < 2 * kWidth; ++i) {
    shared[i][threadIdx.y * blockDim.x + threadIdx.x] = sums[i];
  }
  __syncthreads();
  if (!has_columns) return;
  const int64_t part =
      static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t row = (part * kMaxRotaryViews + view) * in.num_heads + h;
  float* const target = parts + row * x.head_dim + column;
  for (unsigned i = threadIdx.y; i < 2 * kWidth; i += blockDim.y) {
    float total = 0;
    for (unsigned y = 0; y < blockDim.y; ++y) {
      total += shared[i][y * blockDim.x + threadIdx.x];
    }
    target[i < kWidth ? i : x.head_dim / 2 + i - kWidth] = total;
  }
}

// Whether 16 bytes of every half of a row can be moved at once.
template <typename T>
bool IsWide(const float* angles, absl::Span<const HeadTensor> views) {
  bool wide = views[0].head_dim / 2 % cuda::kVectorWidth<T> == 0 &&
              cuda::IsAligned16(angles);
  for (const HeadTensor& view : views) {
    wide = wide && cuda::RowsOf<T>(view).vectors;
  }
  return wide;
}

template <typename T>
RotateArguments<T> ArgumentsOf(const float* angles, float direction, int width,
                               absl::Span<const HeadTensor> views) {
  const HeadTensor& x = views[0];
  RotateArguments<T> in;
  for (size_t i = 0; i < views.size(); ++i) {
    in.views[i] = cuda::RowsOf<T>(views[i]);
  }
  in.angles = angles;
  in.direction = direction;
  in.num_heads = static_cast<int>(x.num_heads);
  in.vectors = static_cast<unsigned>(x.head_dim / 2 / width);
  in.count = static_cast<unsigned>(x.seq_len * x.num_heads) * in.vectors;
  return in;
}

template <typename T>
void LaunchRotate(const float* angles, float direction,
                  absl::Span<const HeadTensor> views, Stream& stream) {
  constexpr int kWidth = cuda::kVectorWidth<T>;
  const HeadTensor& x = views[0];
  const bool wide = IsWide<T>(angles, views);
  const auto in = ArgumentsOf<T>(angles, direction, wide ? kWidth : 1, views);
  if (in.count == 0 || x.batch == 0) return;
  const dim3 grid(static_cast<unsigned>(cuda::CeilDivide(in.count, kThreads)),
                  static_cast<unsigned>(x.batch),
                  static_cast<unsigned>(views.size()));
  const auto kernel = wide ? &RotateKernel<T, kWidth> : &RotateKernel<T, 1>;
  kernel<<<grid, kThreads, 0, CudaStream(stream)>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
}

template <typename T>
void LaunchRotateAndSum(const float* angles, float direction,
                        absl::Span<const HeadTensor> views,
                        const cuda::SumTargets<kMaxRotaryViews>& targets,
                        Stream& stream) {
  constexpr int kWidth = cuda::kVectorWidth<T>;
  const HeadTensor& x = views[0];
  const bool wide = IsWide<T>(angles, views);
  const auto in = ArgumentsOf<T>(angles, direction, wide ? kWidth : 1, views);
  if (in.count == 0 || x.batch == 0) return;
  const int lanes = in.num_heads * static_cast<int>(in.vectors);
  const int slices = cuda::CeilDivide(lanes, kThreads);
  const int lanes_of_block = cuda::CeilDivide(lanes, slices);
  const dim3 block(lanes_of_block, kThreads / lanes_of_block);
  const dim3 grid(cuda::CeilDivide(x.seq_len, kTokens),
                  static_cast<unsigned>(x.batch),
                  static_cast<unsigned>(views.size()) * slices);
  const int num_parts = static_cast<int>(grid.x * grid.y);
  const int num_columns = static_cast<int>(x.num_heads * x.head_dim);
  float* const parts = static_cast<float*>(CudaWorkspace(
      int64_t{num_parts} * kMaxRotaryViews * num_columns * sizeof(float),
      stream));
  const auto kernel =
      wide ? &RotateAndSumKernel<T, kWidth> : &RotateAndSumKernel<T, 1>;
  kernel<<<grid, block, 0, CudaStream(stream)>>>(in, slices, parts);
  CUBIT_CUDA_CHECK_LAUNCH();
  cuda::AddPartialSums(parts, num_parts, num_columns, targets, stream);
}

// CHECKs the arguments; the angles of the first position.
const float* CheckRotation(const ConstTensor& table, int64_t first_position,
                           absl::Span<const HeadTensor> views) {
  CUBIT_CHECK(!views.empty() && views.size() <= kMaxRotaryViews)
      << views.size() << " views";
  const HeadTensor& x = views[0];
  for (const HeadTensor& view : views) {
    cuda::CheckSameExtents(view, x);
    CUBIT_CHECK(view.dtype == x.dtype) << Name(view.dtype);
  }
  CheckRotary(table, first_position, x);
  return table.data<float>() + first_position * x.head_dim;
}

void Rotate(const ConstTensor& table, int64_t first_position, float direction,
            absl::Span<const HeadTensor> views, Stream& stream) {
  const float* angles = CheckRotation(table, first_position, views);
  cuda::Dispatch(views[0].dtype, [&](auto zero) {
    LaunchRotate<decltype(zero)>(angles, direction, views, stream);
  });
}

}  // namespace

void RotaryTable(double base, Tensor table, Stream& stream) {
  CUBIT_CHECK_EQ(table.shape().rank(), 2);
  CUBIT_CHECK_EQ(table.dim(1) % 2, 0);
  CUBIT_CHECK_GT(base, 0);
  const int64_t count = table.dim(0) * table.dim(1) / 2;
  if (count == 0) return;
  TableKernel<<<cuda::CeilDivide(count, kThreads), kThreads, 0,
                CudaStream(stream)>>>(
      base, table.dim(0), static_cast<int>(table.dim(1)), table.data<float>());
  CUBIT_CUDA_CHECK_LAUNCH();
}

void RotaryForward(ConstTensor table, int64_t first_position,
                   absl::Span<const HeadTensor> views, Stream& stream) {
  Rotate(table, first_position, 1.0f, views, stream);
}

void RotaryBackward(ConstTensor table, int64_t first_position,
                    absl::Span<const HeadTensor> d_views, Stream& stream) {
  Rotate(table, first_position, -1.0f, d_views, stream);
}

void RotaryBackward(ConstTensor table, int64_t first_position,
                    absl::Span<const HeadTensor> d_views,
                    absl::Span<const Tensor> d_sums, Stream& stream) {
  CUBIT_CHECK_EQ(d_views.size(), d_sums.size());
  const float* angles = CheckRotation(table, first_position, d_views);
  cuda::SumTargets<kMaxRotaryViews> targets = {};
  bool wanted = false;
  for (size_t i = 0; i < d_sums.size(); ++i) {
    if (d_sums[i].empty()) continue;
    CUBIT_CHECK_SHAPE(d_sums[i], {d_views[i].num_heads * d_views[i].head_dim});
    targets.sums[i] = d_sums[i].data<float>();
    wanted = true;
  }
  if (!wanted) return Rotate(table, first_position, -1.0f, d_views, stream);
  cuda::Dispatch(d_views[0].dtype, [&](auto zero) {
    LaunchRotateAndSum<decltype(zero)>(angles, -1.0f, d_views, targets, stream);
  });
}

}  // namespace cubit
