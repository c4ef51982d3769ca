// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstdint>

#include "ops/cuda/head_views.cuh"
#include "ops/cuda/lanes.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/head_norm.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

using cuda::HeadRows;

constexpr float kEpsilon = 1e-12f;  // under the root, see head_norm.h
constexpr int kThreads = 256;
constexpr int kLanes = 16;  // that share a row
constexpr int kRowsPerBlock = kThreads / kLanes;

// The row (b, t, h) of a group of lanes.
struct RowIndex {
  int b, t, h;
  bool valid;

  __device__ RowIndex(int64_t num_rows, int seq_len, int num_heads) {
    const int64_t index =
        static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kLanes;
    valid = index < num_rows;
    const int64_t row = valid ? index : 0;
    h = static_cast<int>(row % num_heads);
    t = static_cast<int>(row / num_heads % seq_len);
    b = static_cast<int>(row / num_heads / seq_len);
  }
};

// A row's part of this lane: vectors of kWidth elements, kLanes apart.
template <int kWidth, typename Body>
__device__ __forceinline__ void ForEachVector(int head_dim, Body body) {
  for (int c = threadIdx.x % kLanes * kWidth; c < head_dim;
       c += kLanes * kWidth) {
    body(c);
  }
}

template <typename T, int kWidth>
__device__ __forceinline__ float Dot(const T* a, const T* b, int head_dim) {
  float sum = 0.0f;
  ForEachVector<kWidth>(head_dim, [&](int c) {
    const auto x = cuda::LoadPack<T, kWidth>(a + c);
    const auto y = cuda::LoadPack<T, kWidth>(b + c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sum += cuda::ToFloat(x.values[i]) * cuda::ToFloat(y.values[i]);
    }
  });
  return cuda::LaneSum<kLanes>(sum);
}

template <typename T>
struct Arguments {
  HeadRows<T> x;  // forward: x and y; backward: d_y and d_x
  HeadRows<const T> y;
  const float* gain;
  float* inv_norm;
  float* products;  // backward: <y, d_y> of every row [B, H, T], or null
  int num_heads;
  int64_t num_rows;
};

template <typename T, int kWidth>
__global__ void ForwardKernel(const Arguments<T> in) {
  const RowIndex row(in.num_rows, in.x.seq_len, in.num_heads);
  T* const x = in.x.Row(row.b, row.t, row.h);
  const float inverse =
      1.0f / sqrtf(Dot<T, kWidth>(x, x, in.x.head_dim) + kEpsilon);
  if (!row.valid) return;
  const float scale = in.gain == nullptr ? inverse : in.gain[row.h] * inverse;
  ForEachVector<kWidth>(in.x.head_dim, [&](int c) {
    auto pack = cuda::LoadPack<T, kWidth>(x + c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      pack.values[i] =
          cuda::FromFloat<T>(cuda::ToFloat(pack.values[i]) * scale);
    }
    cuda::StorePack(pack, x + c);
  });
  if (threadIdx.x % kLanes == 0) {
    in.inv_norm[(static_cast<int64_t>(row.b) * in.num_heads + row.h) *
                    in.x.seq_len +
                row.t] = inverse;
  }
}

// d = gain inv_norm (d - u <u, d>) with u = y / gain.
template <typename T, int kWidth>
__global__ void BackwardKernel(const Arguments<T> in) {
  const RowIndex row(in.num_rows, in.x.seq_len, in.num_heads);
  T* const d = in.x.Row(row.b, row.t, row.h);
  const T* const y = in.y.Row(row.b, row.t, row.h);
  const float product = Dot<T, kWidth>(y, d, in.x.head_dim);
  if (!row.valid) return;
  const int64_t index =
      (static_cast<int64_t>(row.b) * in.num_heads + row.h) * in.x.seq_len +
      row.t;
  const float gain = in.gain == nullptr ? 1.0f : in.gain[row.h];
  // y / gain twice, so that u itself is never stored; a gain of zero makes y
  // and the gradient zero.
  const float projection = gain == 0.0f ? 0.0f : product / (gain * gain);
  const float scale = gain * in.inv_norm[index];
  ForEachVector<kWidth>(in.x.head_dim, [&](int c) {
    auto d_pack = cuda::LoadPack<T, kWidth>(d + c);
    const auto y_pack = cuda::LoadPack<T, kWidth>(y + c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      d_pack.values[i] = cuda::FromFloat<T>(
          scale * (cuda::ToFloat(d_pack.values[i]) -
                   cuda::ToFloat(y_pack.values[i]) * projection));
    }
    cuda::StorePack(d_pack, d + c);
  });
  if (in.products != nullptr && threadIdx.x % kLanes == 0) {
    in.products[index] = product;
  }
}

// d_gain[h] += sum over (b, t) of products / gain[h]. A block is a head.
__global__ void GainGradientKernel(const float* products, const float* gain,
                                   int batch, int num_heads, int seq_len,
                                   float* d_gain) {
  __shared__ double shared[kThreads / 32];
  const int h = blockIdx.x;
  if (gain[h] == 0.0f) return;
  double sum = 0;
  for (int b = 0; b < batch; ++b) {
    const float* row =
        products + (static_cast<int64_t>(b) * num_heads + h) * seq_len;
    for (int t = threadIdx.x; t < seq_len; t += kThreads) {
      sum += static_cast<double>(row[t]);
    }
  }
  sum = cuda::BlockSum(sum, shared);
  if (threadIdx.x == 0) {
    d_gain[h] = static_cast<float>(static_cast<double>(d_gain[h]) +
                                   sum / static_cast<double>(gain[h]));
  }
}

template <typename View>
void CheckArguments(const View& x, ConstTensor gain, ConstTensor inv_norm) {
  CUBIT_CHECK_SHAPE(inv_norm, {x.batch, x.num_heads, x.seq_len});
  if (!gain.empty()) CUBIT_CHECK_SHAPE(gain, {x.num_heads});
}

template <typename T>
Arguments<T> MakeArguments(const HeadTensor& x, const ConstHeadTensor& y,
                           ConstTensor gain, const void* inv_norm) {
  Arguments<T> arguments;
  arguments.x = cuda::RowsOf<T>(x);
  arguments.y = cuda::RowsOf<const T>(y);
  arguments.gain = gain.empty() ? nullptr : gain.data<float>();
  arguments.inv_norm = const_cast<float*>(static_cast<const float*>(inv_norm));
  arguments.products = nullptr;
  arguments.num_heads = static_cast<int>(x.num_heads);
  arguments.num_rows = x.batch * x.num_heads * x.seq_len;
  return arguments;
}

template <typename T>
void Launch(void (*wide)(Arguments<T>), void (*narrow)(Arguments<T>),
            const Arguments<T>& arguments, Stream& stream) {
  if (arguments.num_rows == 0) return;
  const bool vectors = arguments.x.vectors && arguments.y.vectors;
  (vectors ? wide
           : narrow)<<<cuda::CeilDivide(arguments.num_rows, kRowsPerBlock),
                       kThreads, 0, CudaStream(stream)>>>(arguments);
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace

void HeadNormForward(ConstTensor gain, HeadTensor x, Tensor inv_norm,
                     Stream& stream) {
  CheckArguments(x, gain, inv_norm);
  cuda::Dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    Launch<T>(ForwardKernel<T, cuda::kVectorWidth<T>>, ForwardKernel<T, 1>,
              MakeArguments<T>(x, x, gain, inv_norm.data<float>()), stream);
  });
}

void HeadNormBackward(ConstHeadTensor y, ConstTensor gain, ConstTensor inv_norm,
                      HeadTensor d_x, Tensor d_gain, Stream& stream) {
  CheckArguments(y, gain, inv_norm);
  cuda::CheckSameExtents(y, d_x);
  CUBIT_CHECK(y.dtype == d_x.dtype)
      << Name(y.dtype) << " beside " << Name(d_x.dtype);
  CUBIT_CHECK_EQ(d_gain.empty(), gain.empty());
  float* products = nullptr;
  if (!gain.empty()) {
    CUBIT_CHECK_SHAPE(d_gain, {y.num_heads});
    products = static_cast<float*>(CudaWorkspace(
        y.batch * y.num_heads * y.seq_len * SizeOf(DType::kFloat32), stream));
  }
  cuda::Dispatch(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> arguments =
        MakeArguments<T>(d_x, y, gain, inv_norm.data<float>());
    arguments.products = products;
    Launch<T>(BackwardKernel<T, cuda::kVectorWidth<T>>, BackwardKernel<T, 1>,
              arguments, stream);
  });
  if (gain.empty() || y.num_heads == 0) return;
  GainGradientKernel<<<static_cast<unsigned>(y.num_heads), kThreads, 0,
                       CudaStream(stream)>>>(
      products, gain.data<float>(), static_cast<int>(y.batch),
      static_cast<int>(y.num_heads), static_cast<int>(y.seq_len),
      d_gain.data<float>());
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace cubit
