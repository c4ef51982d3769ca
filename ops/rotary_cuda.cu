// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstdint>

#include "absl/types/span.h"

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

// Stores the packs of both halves of a row, turned, at `low` and `half` behind.
template <typename T, int kWidth>
__device__ __forceinline__ void StoreTurned(const Angles<kWidth>& angles,
                                            const RawPack<T, kWidth>& low_pack,
                                            const RawPack<T, kWidth>& high_pack,
                                            T* low, int half) {
  cuda::Pack<T, kWidth> turned_low, turned_high;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    float a = low_pack.Get(i);
    float b = high_pack.Get(i);
    angles.Turn(i, &a, &b);
    turned_low.values[i] = cuda::FromFloat<T>(a);
    turned_high.values[i] = cuda::FromFloat<T>(b);
  }
  cuda::StorePack(turned_low, low);
  cuda::StorePack(turned_high, low + half);
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
  RawPack<T, kWidth> low_pack, high_pack;
  low_pack.Load(low);
  high_pack.Load(low + half);
  Angles<kWidth> angles;
  angles.Load(in.angles + static_cast<int64_t>(t) * x.head_dim, half, column,
              in.direction);
  StoreTurned(angles, low_pack, high_pack, low, half);
}

template <typename T>
void LaunchRotate(const float* angles, float direction,
                  absl::Span<const HeadTensor> views, Stream& stream) {
  constexpr int kWidth = cuda::kVectorWidth<T>;
  const HeadTensor& x = views[0];
  bool wide = x.head_dim / 2 % kWidth == 0 && cuda::IsAligned16(angles);
  RotateArguments<T> in;
  for (size_t i = 0; i < views.size(); ++i) {
    in.views[i] = cuda::RowsOf<T>(views[i]);
    wide = wide && in.views[i].vectors;
  }
  in.angles = angles;
  in.direction = direction;
  in.num_heads = static_cast<int>(x.num_heads);
  in.vectors = static_cast<unsigned>(x.head_dim / 2 / (wide ? kWidth : 1));
  in.count = static_cast<unsigned>(x.seq_len * x.num_heads) * in.vectors;
  if (in.count == 0 || x.batch == 0) return;
  const dim3 grid(static_cast<unsigned>(cuda::CeilDivide(in.count, kThreads)),
                  static_cast<unsigned>(x.batch),
                  static_cast<unsigned>(views.size()));
  const auto kernel = wide ? &RotateKernel<T, kWidth> : &RotateKernel<T, 1>;
  kernel<<<grid, kThreads, 0, CudaStream(stream)>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
}

void Rotate(const ConstTensor& table, int64_t first_position, float direction,
            absl::Span<const HeadTensor> views, Stream& stream) {
  CUBIT_CHECK(!views.empty() && views.size() <= kMaxRotaryViews)
      << views.size() << " views";
  const HeadTensor& x = views[0];
  for (const HeadTensor& view : views) {
    cuda::CheckSameExtents(view, x);
    CUBIT_CHECK(view.dtype == x.dtype) << Name(view.dtype);
  }
  CheckRotary(table, first_position, x);
  const float* angles = table.data<float>() + first_position * x.head_dim;
  cuda::Dispatch(x.dtype, [&](auto zero) {
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

}  // namespace cubit
