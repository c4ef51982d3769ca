// SPDX-License-Identifier: Apache-2.0
//
// The per-token factors around the KRR solve, and its health: all O(T K).

#include <cstdint>

#include <cuda_bf16.h>

#include "ops/krr.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

// Keeps the norm of a zero row away from 0; far below any real |r|^2.
constexpr float kEpsilon = 1e-12f;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct View {
  const void* data;
  int64_t batch, seq, head;  // strides

  template <typename Element>
  __device__ const Element* Row(int64_t b, int64_t t, int64_t h) const {
    return static_cast<const Element*>(data) + b * batch + t * seq + h * head;
  }
  template <typename Element>
  __device__ Element* MutableRow(int64_t b, int64_t t, int64_t h) const {
    return const_cast<Element*>(Row<Element>(b, t, h));
  }
};

View ViewOf(const ConstHeadTensor& x) {
  return {x.data, x.batch_stride, x.seq_stride, x.head_stride};
}

// Where one thread works: token n of [B, T, H], heads fastest, so that warps
// read neighbouring rows.
struct Size {
  int num_heads;
  int seq_len;
  int head_dim;
  int64_t num_tokens;  // B * T * H
};
struct Token {
  int64_t b, t, h;
  int64_t scalar;  // its place in [B, H, T]
};
__device__ Token TokenOf(const Size& size, int64_t n) {
  const int64_t h = n % size.num_heads;
  const int64_t t = n / size.num_heads % size.seq_len;
  const int64_t b = n / size.num_heads / size.seq_len;
  return {b, t, h, (b * size.num_heads + h) * size.seq_len + t};
}

Size SizeOfHeads(const ConstHeadTensor& r) {
  return {static_cast<int>(r.num_heads), static_cast<int>(r.seq_len),
          static_cast<int>(r.head_dim), r.batch * r.seq_len * r.num_heads};
}

__device__ float Load(const float* p) { return *p; }
__device__ float Load(const __nv_bfloat16* p) { return __bfloat162float(*p); }
__device__ void Store(float* p, float x) { *p = x; }
__device__ void Store(__nv_bfloat16* p, float x) { *p = __float2bfloat16(x); }

__device__ float Sum(float x) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// |row|^2 + epsilon, by a warp.
template <typename Element>
__device__ float SquaredNorm(const Element* row, int dim) {
  float sum = 0;
  for (int c = threadIdx.x % 32; c < dim; c += 32) {
    const float x = Load(row + c);
    sum = fmaf(x, x, sum);
  }
  return Sum(sum) + kEpsilon;
}

struct FactorsArguments {
  Size size;
  View r, lrr;
  const float* scale;
  const float* lower;
  const float* upper_scale;
  float* column_scale;
  float* value_scale;
};

template <typename Element>
__global__ void __launch_bounds__(kThreads)
    FactorsKernel(const FactorsArguments in) {
  const int64_t n = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (n >= in.size.num_tokens) return;
  const Token token = TokenOf(in.size, n);
  const float square = SquaredNorm(in.r.Row<Element>(token.b, token.t, token.h),
                                   in.size.head_dim);
  if (threadIdx.x % 32 != 0) return;
  in.column_scale[token.scalar] = in.scale[token.h] / sqrtf(square);
  in.value_scale[token.scalar] =
      in.lrr.data == nullptr
          ? 1.0f
          : in.lower[token.h] +
                in.upper_scale[token.h] * Sigmoid(Load(in.lrr.Row<Element>(
                                              token.b, token.t, token.h)));
}

struct FactorsBackwardArguments {
  Size size;
  View r, lrr, d_r, d_lrr;
  const float* scale;
  const float* upper_scale;
  const float* d_column_scale;
  const float* d_value_scale;
};

// d_r and d_lrr_logits, token by token.
template <typename Element>
__global__ void __launch_bounds__(kThreads)
    FactorsBackwardKernel(const FactorsBackwardArguments in) {
  const int64_t n = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (n >= in.size.num_tokens) return;
  const Token token = TokenOf(in.size, n);
  const Element* row = in.r.Row<Element>(token.b, token.t, token.h);
  const float inverse = rsqrtf(SquaredNorm(row, in.size.head_dim));
  const float factor = -in.d_column_scale[token.scalar] * in.scale[token.h] *
                       inverse * inverse * inverse;
  Element* d_row = in.d_r.MutableRow<Element>(token.b, token.t, token.h);
  for (int c = threadIdx.x % 32; c < in.size.head_dim; c += 32) {
    Store(d_row + c, fmaf(factor, Load(row + c), Load(d_row + c)));
  }
  if (threadIdx.x % 32 != 0 || in.lrr.data == nullptr) return;
  const float s = Sigmoid(Load(in.lrr.Row<Element>(token.b, token.t, token.h)));
  Store(in.d_lrr.MutableRow<Element>(token.b, token.t, token.h),
        in.d_value_scale[token.scalar] * in.upper_scale[token.h] * s *
            (1.0f - s));
}

// Sums `kCount` numbers over a thread block in a fixed order; thread 0 gets
// them.
template <int kCount>
__device__ void SumOverBlock(double (&x)[kCount]) {
  __shared__ double partial[kCount][kThreads];
  for (int i = 0; i < kCount; ++i) partial[i][threadIdx.x] = x[i];
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) {
      for (int i = 0; i < kCount; ++i) {
        partial[i][threadIdx.x] += partial[i][threadIdx.x + width];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < kCount; ++i) x[i] = partial[i][0];
}

// Gradients of the parameters of head blockIdx.x, over all tokens. column_scale
// is scale / norm, but a scale of 0 has erased the norm, so it is taken again.
template <typename Element>
__global__ void __launch_bounds__(kThreads)
    HeadGradientsKernel(const FactorsBackwardArguments in, int64_t batch,
                        float* d_scale, float* d_lower, float* d_upper_scale) {
  const int64_t h = blockIdx.x;
  double sums[3] = {0, 0, 0};
  for (int64_t n = threadIdx.x; n < batch * in.size.seq_len; n += kThreads) {
    const int64_t b = n / in.size.seq_len;
    const int64_t t = n % in.size.seq_len;
    const int64_t scalar = (b * in.size.num_heads + h) * in.size.seq_len + t;
    const Element* row = in.r.Row<Element>(b, t, h);
    float square = kEpsilon;
    for (int c = 0; c < in.size.head_dim; ++c) {
      const float x = Load(row + c);
      square = fmaf(x, x, square);
    }
    sums[0] += in.d_column_scale[scalar] / sqrtf(square);
    if (in.lrr.data == nullptr) continue;
    const float d_value = in.d_value_scale[scalar];
    sums[1] += d_value;
    sums[2] += d_value * Sigmoid(Load(in.lrr.Row<Element>(b, t, h)));
  }
  SumOverBlock(sums);
  if (threadIdx.x != 0) return;
  d_scale[h] += static_cast<float>(sums[0]);
  if (in.lrr.data == nullptr) return;
  d_lower[h] += static_cast<float>(sums[1]);
  d_upper_scale[h] += static_cast<float>(sums[2]);
}

struct HealthArguments {
  Size size;
  View r, v, x;
  const float* column_scale;
  const float* value_scale;
  const float* lse;
};

// Larger of two magnitudes; NaN is larger than everything.
__device__ float Larger(float a, float b) { return isnan(a) || a > b ? a : b; }

// Health of one (sequence, head): -log of the smallest diagonal of P, largest
// |x|, largest |value_scale v|. One block each.
template <typename Element>
__global__ void __launch_bounds__(kThreads)
    HealthKernel(const HealthArguments in, float* pairs) {
  const int64_t pair = blockIdx.x;
  const int64_t b = pair / in.size.num_heads;
  const int64_t h = pair % in.size.num_heads;
  float largest[3] = {0, 0, 0};
  for (int64_t t = threadIdx.x / 32; t < in.size.seq_len; t += kWarps) {
    const int64_t scalar = pair * in.size.seq_len + t;
    const Element* r = in.r.Row<Element>(b, t, h);
    const Element* v = in.v.Row<Element>(b, t, h);
    const Element* x = in.x.Row<Element>(b, t, h);
    const float scale = in.value_scale[scalar];
    float square = 0;
    for (int c = threadIdx.x % 32; c < in.size.head_dim; c += 32) {
      const float element = Load(r + c);
      square = fmaf(element, element, square);
      largest[1] = Larger(fabsf(Load(x + c)), largest[1]);
      largest[2] = Larger(fabsf(scale * Load(v + c)), largest[2]);
    }
    const float score = in.column_scale[scalar] * Sum(square);
    largest[0] = Larger(in.lse[scalar] - score, largest[0]);
  }
  __shared__ float partial[3][kThreads];
  for (int i = 0; i < 3; ++i) partial[i][threadIdx.x] = largest[i];
  __syncthreads();
  if (threadIdx.x >= 3) return;
  float result = 0;
  for (int i = 0; i < kThreads; ++i) {
    result = Larger(partial[threadIdx.x][i], result);
  }
  pairs[pair * 3 + threadIdx.x] = result;
}

__global__ void ReduceHealthKernel(const float* pairs, int num_pairs,
                                   const float* log_lambda, int num_heads,
                                   float* result) {
  float largest[3] = {0, 0, 0};
  for (int pair = 0; pair < num_pairs; ++pair) {
    for (int i = 0; i < 3; ++i) {
      largest[i] = Larger(pairs[pair * 3 + i], largest[i]);
    }
  }
  float lambda = log_lambda[0];
  for (int h = 1; h < num_heads; ++h) lambda = Larger(log_lambda[h], lambda);
  result[0] = expf(-largest[0]);
  result[1] = largest[2] == 0 ? 0 : largest[1] / largest[2];
  result[2] = expf(lambda);
}

void CheckView(const ConstHeadTensor& x, const char* name,
               const ConstHeadTensor& like, int64_t head_dim) {
  CUBIT_CHECK(x.dtype == like.dtype)
      << name << ": dtype " << Name(x.dtype) << ", wanted " << Name(like.dtype);
  CUBIT_CHECK(x.batch == like.batch && x.seq_len == like.seq_len &&
              x.num_heads == like.num_heads && x.head_dim == head_dim)
      << name << ": wanted " << like.batch << ", " << like.seq_len << ", "
      << like.num_heads << ", " << head_dim;
}

void CheckLrr(const ConstHeadTensor& r, const ConstHeadTensor& lrr_logits,
              const ConstTensor& lower, const ConstTensor& upper_scale) {
  CUBIT_CHECK_EQ(lrr_logits.empty(), lower.empty());
  CUBIT_CHECK_EQ(lrr_logits.empty(), upper_scale.empty());
  if (lrr_logits.empty()) return;
  CheckView(lrr_logits, "lrr_logits", r, 1);
  CUBIT_CHECK_SHAPE(lower, {r.num_heads});
  CUBIT_CHECK_SHAPE(upper_scale, {r.num_heads});
}

unsigned BlocksForTokens(const Size& size) {
  return static_cast<unsigned>((size.num_tokens + kWarps - 1) / kWarps);
}

const float* DataOrNull(const ConstTensor& x) {
  return x.empty() ? nullptr : x.data<float>();
}

template <typename Element>
void LaunchFactorsBackward(const FactorsBackwardArguments& in, int64_t batch,
                           const Tensor& d_scale, const Tensor& d_lower,
                           const Tensor& d_upper_scale, cudaStream_t stream) {
  FactorsBackwardKernel<Element>
      <<<BlocksForTokens(in.size), kThreads, 0, stream>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
  HeadGradientsKernel<Element>
      <<<static_cast<unsigned>(in.size.num_heads), kThreads, 0, stream>>>(
          in, batch, d_scale.data<float>(),
          d_lower.empty() ? nullptr : d_lower.data<float>(),
          d_upper_scale.empty() ? nullptr : d_upper_scale.data<float>());
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace

void KrrFactorsForward(ConstHeadTensor r, ConstHeadTensor lrr_logits,
                       ConstTensor scale, ConstTensor lower,
                       ConstTensor upper_scale, Tensor column_scale,
                       Tensor value_scale, Stream& stream) {
  CheckLrr(r, lrr_logits, lower, upper_scale);
  CUBIT_CHECK_SHAPE(scale, {r.num_heads});
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(value_scale, {r.batch, r.num_heads, r.seq_len});
  const FactorsArguments in = {SizeOfHeads(r),
                               ViewOf(r),
                               ViewOf(lrr_logits),
                               scale.data<float>(),
                               DataOrNull(lower),
                               DataOrNull(upper_scale),
                               column_scale.data<float>(),
                               value_scale.data<float>()};
  if (in.size.num_tokens == 0) return;
  const unsigned blocks = BlocksForTokens(in.size);
  if (r.dtype == DType::kBFloat16) {
    FactorsKernel<__nv_bfloat16>
        <<<blocks, kThreads, 0, CudaStream(stream)>>>(in);
  } else {
    FactorsKernel<float><<<blocks, kThreads, 0, CudaStream(stream)>>>(in);
  }
  CUBIT_CUDA_CHECK_LAUNCH();
}

void KrrFactorsBackward(ConstHeadTensor r, ConstHeadTensor lrr_logits,
                        ConstTensor scale, ConstTensor upper_scale,
                        ConstTensor column_scale, ConstTensor d_column_scale,
                        ConstTensor d_value_scale, HeadTensor d_r,
                        HeadTensor d_lrr_logits, Tensor d_scale, Tensor d_lower,
                        Tensor d_upper_scale, Stream& stream) {
  CheckLrr(r, lrr_logits, upper_scale, upper_scale);
  CheckLrr(r, d_lrr_logits, d_lower, d_upper_scale);
  CUBIT_CHECK_EQ(lrr_logits.empty(), d_lrr_logits.empty());
  CheckView(d_r, "d_r", r, r.head_dim);
  CUBIT_CHECK_SHAPE(scale, {r.num_heads});
  CUBIT_CHECK_SHAPE(d_scale, {r.num_heads});
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(d_column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(d_value_scale, {r.batch, r.num_heads, r.seq_len});
  const FactorsBackwardArguments in = {SizeOfHeads(r),
                                       ViewOf(r),
                                       ViewOf(lrr_logits),
                                       ViewOf(d_r),
                                       ViewOf(d_lrr_logits),
                                       scale.data<float>(),
                                       DataOrNull(upper_scale),
                                       d_column_scale.data<float>(),
                                       d_value_scale.data<float>()};
  if (in.size.num_tokens == 0) return;
  if (r.dtype == DType::kBFloat16) {
    LaunchFactorsBackward<__nv_bfloat16>(in, r.batch, d_scale, d_lower,
                                         d_upper_scale, CudaStream(stream));
  } else {
    LaunchFactorsBackward<float>(in, r.batch, d_scale, d_lower, d_upper_scale,
                                 CudaStream(stream));
  }
}

void KrrHealth(ConstHeadTensor r, ConstHeadTensor v, ConstTensor column_scale,
               ConstTensor value_scale, ConstTensor log_lambda,
               ConstHeadTensor x, ConstTensor lse, Tensor result,
               Stream& stream) {
  CUBIT_CHECK_SHAPE(result, {3});
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(value_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(lse, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(log_lambda, {r.num_heads});
  CheckView(v, "v", r, r.head_dim);
  CheckView(x, "x", r, r.head_dim);
  const HealthArguments in = {SizeOfHeads(r),
                              ViewOf(r),
                              ViewOf(v),
                              ViewOf(x),
                              column_scale.data<float>(),
                              value_scale.data<float>(),
                              lse.data<float>()};
  const int num_pairs = static_cast<int>(r.batch * r.num_heads);
  CUBIT_CHECK_GT(num_pairs, 0);
  float* pairs = static_cast<float*>(
      CudaWorkspace(num_pairs * 3 * int64_t{sizeof(float)}, stream));
  const cudaStream_t native = CudaStream(stream);
  if (r.dtype == DType::kBFloat16) {
    HealthKernel<__nv_bfloat16><<<num_pairs, kThreads, 0, native>>>(in, pairs);
  } else {
    HealthKernel<float><<<num_pairs, kThreads, 0, native>>>(in, pairs);
  }
  CUBIT_CUDA_CHECK_LAUNCH();
  ReduceHealthKernel<<<1, 1, 0, native>>>(
      pairs, num_pairs, log_lambda.data<float>(), static_cast<int>(r.num_heads),
      result.data<float>());
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace cubit
