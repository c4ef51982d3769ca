// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstdint>

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/head_views.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/heads.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

using cuda::HeadRows;

struct Extents {
  int seq_len, num_heads, vectors;  // of a row
  int64_t count;                    // vectors in all
};

// y = f(a, b), kWidth elements of a row a thread; threads that follow each
// other have vectors, heads, positions that follow each other.
template <int kWidth, typename A, typename B, typename Y, typename F>
__global__ void HeadPointwiseKernel(Extents extents, HeadRows<const A> a,
                                    HeadRows<const B> b, F f, HeadRows<Y> y) {
  const int64_t index =
      static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= extents.count) return;
  const int column = static_cast<int>(index % extents.vectors) * kWidth;
  const int64_t row = index / extents.vectors;
  const int h = static_cast<int>(row % extents.num_heads);
  const int64_t n = row / extents.num_heads;
  const int t = static_cast<int>(n % extents.seq_len);
  const int batch = static_cast<int>(n / extents.seq_len);
  const auto a_pack = cuda::LoadPack<A, kWidth>(a.Row(batch, t, h) + column);
  const auto b_pack = cuda::LoadPack<B, kWidth>(b.Row(batch, t, h) + column);
  cuda::Pack<Y, kWidth> y_pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    y_pack.values[i] = cuda::FromFloat<Y>(
        f(cuda::ToFloat(a_pack.values[i]), cuda::ToFloat(b_pack.values[i])));
  }
  cuda::StorePack(y_pack, y.Row(batch, t, h) + column);
}

// Heads side by side are one long row.
template <typename View>
View Joined(View x) {
  x.head_dim *= x.num_heads;
  x.num_heads = 1;
  return x;
}
template <typename View>
bool IsSideBySide(const View& x) {
  return x.head_stride == x.head_dim;
}

template <typename A, typename B, typename Y, typename F>
void Pointwise(ConstHeadTensor a, ConstHeadTensor b, HeadTensor y, F f,
               Stream& stream) {
  cuda::CheckSameExtents(a, y);
  cuda::CheckSameExtents(b, y);
  if (IsSideBySide(a) && IsSideBySide(b) && IsSideBySide(y)) {
    a = Joined(a), b = Joined(b), y = Joined(y);
  }
  // 16 bytes of the narrowest type.
  constexpr int kWidth =
      sizeof(A) == 2 || sizeof(B) == 2 || sizeof(Y) == 2 ? 8 : 4;
  const auto fits = [](const auto& x, int64_t size) {
    return cuda::HasRowsOf(x, kWidth * size);
  };
  const bool wide =
      fits(a, sizeof(A)) && fits(b, sizeof(B)) && fits(y, sizeof(Y));
  Extents extents;
  extents.seq_len = static_cast<int>(y.seq_len);
  extents.num_heads = static_cast<int>(y.num_heads);
  extents.vectors = static_cast<int>(y.head_dim / (wide ? kWidth : 1));
  extents.count = y.batch * y.seq_len * y.num_heads * extents.vectors;
  if (extents.count == 0) return;
  constexpr int kThreads = 256;
  const auto kernel = wide ? &HeadPointwiseKernel<kWidth, A, B, Y, F>
                           : &HeadPointwiseKernel<1, A, B, Y, F>;
  kernel<<<cuda::CeilDivide(extents.count, kThreads), kThreads, 0,
           CudaStream(stream)>>>(extents, cuda::RowsOf<const A>(a),
                                 cuda::RowsOf<const B>(b), f,
                                 cuda::RowsOf<Y>(y));
  CUBIT_CUDA_CHECK_LAUNCH();
}

// y = f(x); the types may differ.
template <typename F>
void Map(ConstHeadTensor x, HeadTensor y, F f, Stream& stream) {
  cuda::Dispatch(x.dtype, [&](auto x_zero) {
    cuda::Dispatch(y.dtype, [&](auto y_zero) {
      using X = decltype(x_zero);
      Pointwise<X, X, decltype(y_zero)>(x, x, y, f, stream);
    });
  });
}

struct First {
  __device__ float operator()(float x, float) const { return x; }
};
struct Sum {
  __device__ float operator()(float x, float y) const { return x + y; }
};
struct Sigmoid {
  __device__ float operator()(float x, float) const {
    return 1.0f / (1.0f + expf(-x));
  }
};
struct SigmoidGradient {
  __device__ float operator()(float d_y, float y) const {
    return d_y * y * (1.0f - y);
  }
};

}  // namespace

void CopyHeads(ConstHeadTensor x, HeadTensor y, Stream& stream) {
  Map(x, y, First(), stream);
}

void AddHeads(ConstHeadTensor x, HeadTensor y, Stream& stream) {
  cuda::Dispatch(x.dtype, [&](auto x_zero) {
    cuda::Dispatch(y.dtype, [&](auto y_zero) {
      using Y = decltype(y_zero);
      Pointwise<decltype(x_zero), Y, Y>(x, y, y, Sum(), stream);
    });
  });
}

void AddHeadSums(ConstHeadTensor x, Tensor sums, Stream& stream) {
  if (sums.empty()) return;
  CUBIT_CHECK_SHAPE(sums, {x.num_heads * x.head_dim});
  if (x.batch * x.seq_len * x.num_heads * x.head_dim == 0) return;
  if (IsSideBySide(x)) x = Joined(x);
  // Mostly all rows are equally far from each other: one matrix.
  if (x.batch_stride == x.seq_len * x.seq_stride) {
    x.seq_len *= x.batch;
    x.batch = 1;
  }
  cuda::Dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t b = 0; b < x.batch; ++b) {
      for (int64_t h = 0; h < x.num_heads; ++h) {
        const T* first = static_cast<const T*>(x.data) + b * x.batch_stride +
                         h * x.head_stride;
        cuda::AddColumnSums(first, x.seq_len, x.head_dim, x.seq_stride,
                            sums.data<float>() + h * x.head_dim, stream);
      }
    }
  });
}

void SigmoidHeads(ConstHeadTensor x, HeadTensor y, Stream& stream) {
  Map(x, y, Sigmoid(), stream);
}

void SigmoidHeadsBackward(ConstHeadTensor d_y, ConstHeadTensor y,
                          HeadTensor d_x, Stream& stream) {
  CUBIT_CHECK(d_y.dtype == y.dtype)
      << Name(d_y.dtype) << " beside " << Name(y.dtype);
  cuda::Dispatch(y.dtype, [&](auto y_zero) {
    cuda::Dispatch(d_x.dtype, [&](auto x_zero) {
      using Y = decltype(y_zero);
      Pointwise<Y, Y, decltype(x_zero)>(d_y, y, d_x, SigmoidGradient(), stream);
    });
  });
}

}  // namespace cubit
