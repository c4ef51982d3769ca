// SPDX-License-Identifier: Apache-2.0

#include <cstdint>
#include <limits>

#include "ops/activations.h"
#include "ops/cuda/activation_math.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/cuda/pointwise.cuh"

namespace cubit {
namespace {

using cuda::Elements;
using cuda::FromFloat;
using cuda::LoadPack;
using cuda::Pack;
using cuda::ToFloat;

constexpr int kThreads = 256;

template <typename T>
struct GeluFunction {
  __device__ float operator()(float x, float) const { return cuda::Gelu<T>(x); }
};

template <typename T>
struct GeluGradient {
  __device__ float operator()(float d_y, float x) const {
    return d_y * cuda::GeluDerivative<T>(x);
  }
};

// kWidth outputs a thread: of row `pack / packs_in_row`.
template <typename T, int kWidth>
__global__ void SwiGluForwardKernel(const T* x, uint32_t num_packs,
                                    uint32_t packs_in_row, T* y) {
  const uint32_t pack = blockIdx.x * kThreads + threadIdx.x;
  if (pack >= num_packs) return;
  const uint32_t row = pack / packs_in_row;
  const T* gate = x + (static_cast<int64_t>(pack) +
                       static_cast<int64_t>(row) * packs_in_row) *
                          kWidth;
  const T* up = gate + static_cast<int64_t>(packs_in_row) * kWidth;
  const Pack<T, kWidth> gates = LoadPack<T, kWidth>(gate);
  const Pack<T, kWidth> ups = LoadPack<T, kWidth>(up);
  Pack<T, kWidth> result;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float g = ToFloat(gates.values[i]);
    result.values[i] =
        FromFloat<T>(g * cuda::Sigmoid<T>(g) * ToFloat(ups.values[i]));
  }
  StorePack(result, y + static_cast<int64_t>(pack) * kWidth);
}

// A thread reads what it overwrites before it does: d_x may be x.
template <typename T, int kWidth>
__global__ void SwiGluBackwardKernel(const T* d_y, const T* x,
                                     uint32_t num_packs, uint32_t packs_in_row,
                                     T* d_x) {
  const uint32_t pack = blockIdx.x * kThreads + threadIdx.x;
  if (pack >= num_packs) return;
  const uint32_t row = pack / packs_in_row;
  const int64_t gate =
      (static_cast<int64_t>(pack) + static_cast<int64_t>(row) * packs_in_row) *
      kWidth;
  const int64_t up = gate + static_cast<int64_t>(packs_in_row) * kWidth;
  const Pack<T, kWidth> d_ys =
      LoadPack<T, kWidth>(d_y + static_cast<int64_t>(pack) * kWidth);
  const Pack<T, kWidth> gates = LoadPack<T, kWidth>(x + gate);
  const Pack<T, kWidth> ups = LoadPack<T, kWidth>(x + up);
  Pack<T, kWidth> d_gates;
  Pack<T, kWidth> d_ups;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float d = ToFloat(d_ys.values[i]);
    const float g = ToFloat(gates.values[i]);
    const float s = cuda::Sigmoid<T>(g);
    const float silu = g * s;
    d_gates.values[i] =
        FromFloat<T>(d * ToFloat(ups.values[i]) * (s + silu * (1.0f - s)));
    d_ups.values[i] = FromFloat<T>(d * silu);
  }
  StorePack(d_gates, d_x + gate);
  StorePack(d_ups, d_x + up);
}

// Packs of [N, F] and of one of its rows.
struct PackCount {
  uint32_t all;
  uint32_t in_row;
  int blocks;
};

PackCount CountPacks(int64_t num_rows, int64_t width, int64_t pack_width) {
  const int64_t packs = num_rows * width / pack_width;
  CUBIT_CHECK_LT(packs, int64_t{std::numeric_limits<int32_t>::max()});
  return {static_cast<uint32_t>(packs),
          static_cast<uint32_t>(width / pack_width),
          cuda::CeilDivide(packs, kThreads)};
}

}  // namespace

void GeluForward(ConstTensor x, Tensor y, Stream& stream) {
  CUBIT_CHECK_EQ(x.shape(), y.shape());
  CUBIT_CHECK(x.dtype() == y.dtype()) << Name(y.dtype());
  cuda::Dispatch(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = Elements<T>(x);
    cuda::Pointwise(from, from, x.num_elements(), GeluFunction<T>(),
                    Elements<T>(y), stream);
  });
}

void GeluBackward(ConstTensor d_y, ConstTensor x, Tensor d_x, Stream& stream) {
  CUBIT_CHECK_EQ(x.shape(), d_y.shape());
  CUBIT_CHECK_EQ(x.shape(), d_x.shape());
  CUBIT_CHECK(x.dtype() == d_y.dtype() && x.dtype() == d_x.dtype())
      << Name(d_y.dtype()) << ", " << Name(d_x.dtype());
  cuda::Dispatch(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    cuda::Pointwise(Elements<T>(d_y), Elements<T>(x), x.num_elements(),
                    GeluGradient<T>(), Elements<T>(d_x), stream);
  });
}

void SwiGluForward(ConstTensor x, Tensor y, Stream& stream) {
  const int64_t num_rows = y.dim(0);
  const int64_t width = y.dim(1);
  CUBIT_CHECK_SHAPE(x, {num_rows, 2 * width});
  CUBIT_CHECK(x.dtype() == y.dtype()) << Name(y.dtype());
  if (y.num_elements() == 0) return;
  cuda::Dispatch(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = cuda::kVectorWidth<T>;
    const bool wide = width % kWidth == 0 && cuda::IsAligned16(x.raw()) &&
                      cuda::IsAligned16(y.raw());
    const PackCount count = CountPacks(num_rows, width, wide ? kWidth : 1);
    const auto kernel =
        wide ? &SwiGluForwardKernel<T, kWidth> : &SwiGluForwardKernel<T, 1>;
    kernel<<<count.blocks, kThreads, 0, CudaStream(stream)>>>(
        Elements<T>(x), count.all, count.in_row, Elements<T>(y));
    CUBIT_CUDA_CHECK_LAUNCH();
  });
}

void SwiGluBackward(ConstTensor d_y, ConstTensor x, Tensor d_x,
                    Stream& stream) {
  const int64_t num_rows = d_y.dim(0);
  const int64_t width = d_y.dim(1);
  CUBIT_CHECK_SHAPE(x, {num_rows, 2 * width});
  CUBIT_CHECK_SHAPE(d_x, {num_rows, 2 * width});
  CUBIT_CHECK(x.dtype() == d_y.dtype() && x.dtype() == d_x.dtype())
      << Name(d_y.dtype()) << ", " << Name(d_x.dtype());
  if (d_y.num_elements() == 0) return;
  cuda::Dispatch(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = cuda::kVectorWidth<T>;
    const bool wide = width % kWidth == 0 && cuda::IsAligned16(x.raw()) &&
                      cuda::IsAligned16(d_y.raw()) &&
                      cuda::IsAligned16(d_x.raw());
    const PackCount count = CountPacks(num_rows, width, wide ? kWidth : 1);
    const auto kernel =
        wide ? &SwiGluBackwardKernel<T, kWidth> : &SwiGluBackwardKernel<T, 1>;
    kernel<<<count.blocks, kThreads, 0, CudaStream(stream)>>>(
        Elements<T>(d_y), Elements<T>(x), count.all, count.in_row,
        Elements<T>(d_x));
    CUBIT_CUDA_CHECK_LAUNCH();
  });
}

}  // namespace cubit
