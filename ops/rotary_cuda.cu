// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstdint>

#include "ops/cuda/head_views.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/rotary.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

using cuda::HeadRows;

constexpr int kThreads = 256;
// Heads of a position that one thread turns: loads in flight, and each angle
// is read once for all.
constexpr int kHeadsPerThread = 4;

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

struct RotateExtents {
  int seq_len, num_heads;
  int head_groups;  // of kHeadsPerThread
  int vectors;      // of half a row
  int64_t count;    // threads that have work
};

// Turns kWidth pairs (x_i, x_{i + K/2}) of kHeadsPerThread heads.
template <typename T, int kWidth>
__global__ void RotateKernel(RotateExtents extents, const float* angles,
                             float direction, HeadRows<T> x) {
  const int64_t index =
      static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= extents.count) return;
  const int half = x.head_dim / 2;
  const int column = static_cast<int>(index % extents.vectors) * kWidth;
  const int64_t group = index / extents.vectors;
  const int first =
      static_cast<int>(group % extents.head_groups) * kHeadsPerThread;
  const int64_t n = group / extents.head_groups;
  const int t = static_cast<int>(n % extents.seq_len);
  const int b = static_cast<int>(n / extents.seq_len);
  const float* cosine = angles + static_cast<int64_t>(t) * x.head_dim + column;
  float c[kWidth];
  float s[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    c[i] = cosine[i];
    s[i] = direction * cosine[half + i];
  }
#pragma unroll
  for (int offset = 0; offset < kHeadsPerThread; ++offset) {
    if (first + offset >= extents.num_heads) break;
    T* const low = x.Row(b, t, first + offset) + column;
    auto low_pack = cuda::LoadPack<T, kWidth>(low);
    auto high_pack = cuda::LoadPack<T, kWidth>(low + half);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float a = cuda::ToFloat(low_pack.values[i]);
      const float d = cuda::ToFloat(high_pack.values[i]);
      low_pack.values[i] = cuda::FromFloat<T>(a * c[i] - d * s[i]);
      high_pack.values[i] = cuda::FromFloat<T>(d * c[i] + a * s[i]);
    }
    cuda::StorePack(low_pack, low);
    cuda::StorePack(high_pack, low + half);
  }
}

template <typename T>
void LaunchRotate(const float* angles, float direction, const HeadTensor& x,
                  Stream& stream) {
  constexpr int kWidth = cuda::kVectorWidth<T>;
  const bool wide = cuda::HasRowsOf(x, 16) && x.head_dim / 2 % kWidth == 0;
  RotateExtents extents;
  extents.seq_len = static_cast<int>(x.seq_len);
  extents.num_heads = static_cast<int>(x.num_heads);
  extents.head_groups = cuda::CeilDivide(x.num_heads, kHeadsPerThread);
  extents.vectors = static_cast<int>(x.head_dim / 2 / (wide ? kWidth : 1));
  extents.count = x.batch * x.seq_len * extents.head_groups * extents.vectors;
  if (extents.count == 0) return;
  const auto kernel = wide ? &RotateKernel<T, kWidth> : &RotateKernel<T, 1>;
  kernel<<<cuda::CeilDivide(extents.count, kThreads), kThreads, 0,
           CudaStream(stream)>>>(extents, angles, direction,
                                 cuda::RowsOf<T>(x));
  CUBIT_CUDA_CHECK_LAUNCH();
}

void Rotate(ConstTensor table, int64_t first_position, float direction,
            const HeadTensor& x, Stream& stream) {
  CUBIT_CHECK_EQ(x.head_dim % 2, 0);
  CUBIT_CHECK_EQ(table.shape().rank(), 2);
  CUBIT_CHECK_EQ(table.dim(1), x.head_dim);
  CUBIT_CHECK(first_position >= 0 && first_position + x.seq_len <= table.dim(0))
      << "positions [" << first_position << ", " << first_position + x.seq_len
      << ") of a table of " << table.dim(0);
  const float* angles = table.data<float>() + first_position * x.head_dim;
  cuda::Dispatch(x.dtype, [&](auto zero) {
    LaunchRotate<decltype(zero)>(angles, direction, x, stream);
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

void RotaryForward(ConstTensor table, int64_t first_position, HeadTensor x,
                   Stream& stream) {
  Rotate(table, first_position, 1.0f, x, stream);
}

void RotaryBackward(ConstTensor table, int64_t first_position, HeadTensor d_x,
                    Stream& stream) {
  Rotate(table, first_position, -1.0f, d_x, stream);
}

}  // namespace cubit
