// SPDX-License-Identifier: Apache-2.0
//
// The per-token factors around the KRR solve, and its health: all O(T K).

#include <cstdint>

#include <cuda_bf16.h>

#include "ops/cuda/head_views.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/krr.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

constexpr float kEpsilon = static_cast<float>(kKrrNormEpsilon);
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

using cuda::FromFloat;
using cuda::LoadPack;
using cuda::StorePack;
using cuda::ToFloat;

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// kLanes neighbouring threads of a warp hold one row, kWidth elements at a
// time.
template <typename ElementType, int kLanesOfRow, int kElementsAtOnce>
struct RowLanes {
  using Element = ElementType;
  static constexpr int kLanes = kLanesOfRow;
  static constexpr int kWidth = kElementsAtOnce;
  static constexpr int kRowsOfBlock = kThreads / kLanes;

  __device__ static int Row() { return static_cast<int>(threadIdx.x) / kLanes; }
  __device__ static int Lane() {
    return static_cast<int>(threadIdx.x) % kLanes;
  }
  // use(c): of the columns [c, c + kWidth) of this thread.
  template <typename Use>
  __device__ static void ForColumns(int dim, const Use& use) {
    for (int c = Lane() * kWidth; c < dim; c += kLanes * kWidth) use(c);
  }
  // Over the row, the same in all its threads. By whole warps.
  __device__ static float Sum(float x) {
#pragma unroll
    for (int i = kLanes / 2; i > 0; i /= 2) {
      x += __shfl_xor_sync(0xffffffffu, x, i);
    }
    return x;
  }
};

// |row|^2.
template <typename Lanes>
__device__ float Square(const typename Lanes::Element* row, int dim) {
  constexpr int kWidth = Lanes::kWidth;
  float sum = 0;
  Lanes::ForColumns(dim, [&](int c) {
    const auto pack = LoadPack<typename Lanes::Element, kWidth>(row + c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float x = ToFloat(pack.values[i]);
      sum = fmaf(x, x, sum);
    }
  });
  return Lanes::Sum(sum);
}

// Combines each of `kCount` numbers over a thread block, in a fixed order;
// thread 0 gets the results.
template <typename T, int kCount, typename Combine>
__device__ void ReduceOverBlock(T (&x)[kCount], const Combine& combine) {
  __shared__ T of_warp[kCount][kWarps];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      x[i] = combine(x[i], __shfl_xor_sync(0xffffffffu, x[i], offset));
    }
    if (threadIdx.x % 32 == 0) of_warp[i][threadIdx.x / 32] = x[i];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 0; i < kCount; ++i) {
    for (int w = 1; w < kWarps; ++w) x[i] = combine(x[i], of_warp[i][w]);
  }
}
template <int kCount>
__device__ void SumOverBlock(double (&x)[kCount]) {
  ReduceOverBlock(x, [](double a, double b) { return a + b; });
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

template <typename Lanes>
__global__ void __launch_bounds__(kThreads)
    FactorsKernel(const FactorsArguments in) {
  using Element = typename Lanes::Element;
  const int64_t n = int64_t{blockIdx.x} * Lanes::kRowsOfBlock + Lanes::Row();
  const bool valid = n < in.size.num_tokens;
  const Token token = TokenOf(in.size, valid ? n : 0);
  const float square =
      Square<Lanes>(in.r.Row<Element>(token.b, token.t, token.h),
                    in.size.head_dim) +
      kEpsilon;
  if (!valid || Lanes::Lane() != 0) return;
  in.column_scale[token.scalar] = in.scale[token.h] / sqrtf(square);
  in.value_scale[token.scalar] =
      in.lrr.data == nullptr
          ? 1.0f
          : in.lower[token.h] +
                in.upper_scale[token.h] * Sigmoid(ToFloat(*in.lrr.Row<Element>(
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

// Tokens of one head that a thread block takes.
constexpr int kTokensOfBlock = 64;
// Sums for d_scale, d_lower and d_upper_scale.
constexpr int kHeadSums = 3;

int64_t ChunksOfSequence(const Size& size) {
  return (size.seq_len + kTokensOfBlock - 1) / kTokensOfBlock;
}

// Token t of pair blockIdx.x / chunks of a block.
__device__ Token TokenOfPair(const Size& size, int64_t pair, int t) {
  return {pair / size.num_heads, t, pair % size.num_heads,
          pair * size.seq_len + t};
}

// The LRR factor of one token: adds its parameters' gradients and returns that
// of its logit.
__device__ float LrrBackward(float d_value, float logit, float upper_scale,
                             double (&sums)[kHeadSums]) {
  const float s = Sigmoid(logit);
  sums[1] += d_value;
  sums[2] += d_value * s;
  return d_value * upper_scale * s * (1.0f - s);
}

// d_r and d_lrr_logits of one token; lane 0 adds its share of the head's
// gradients. column_scale is scale / norm, but a scale of 0 has erased the
// norm, so it is taken again. By whole warps.
template <typename Lanes>
__device__ void TokenBackward(const FactorsBackwardArguments& in,
                              const Token& token, bool valid,
                              double (&sums)[kHeadSums]) {
  using Element = typename Lanes::Element;
  constexpr int kWidth = Lanes::kWidth;
  const Element* row = in.r.Row<Element>(token.b, token.t, token.h);
  const float square = Square<Lanes>(row, in.size.head_dim) + kEpsilon;
  if (!valid) return;
  const float inverse = rsqrtf(square);
  const float d_column_scale = in.d_column_scale[token.scalar];
  const float factor =
      -d_column_scale * in.scale[token.h] * inverse * inverse * inverse;
  Element* d_row = in.d_r.MutableRow<Element>(token.b, token.t, token.h);
  Lanes::ForColumns(in.size.head_dim, [&](int c) {
    const auto r = LoadPack<Element, kWidth>(row + c);
    auto d = LoadPack<Element, kWidth>(d_row + c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      d.values[i] = FromFloat<Element>(
          fmaf(factor, ToFloat(r.values[i]), ToFloat(d.values[i])));
    }
    StorePack(d, d_row + c);
  });
  if (Lanes::Lane() != 0) return;
  sums[0] += d_column_scale / sqrtf(square);
  if (in.lrr.data == nullptr) return;
  *in.d_lrr.MutableRow<Element>(token.b, token.t, token.h) = FromFloat<Element>(
      LrrBackward(in.d_value_scale[token.scalar],
                  ToFloat(*in.lrr.Row<Element>(token.b, token.t, token.h)),
                  in.upper_scale[token.h], sums));
}

// partials[block][kHeadSums]: of one head, one sequence and kTokensOfBlock
// tokens, in a fixed order. Blocks: chunks of a sequence, heads, sequences.
template <typename Lanes>
__global__ void __launch_bounds__(kThreads)
    FactorsBackwardKernel(const FactorsBackwardArguments in, int chunks,
                          double* partials) {
  const int64_t pair = blockIdx.x / chunks;
  const int begin = static_cast<int>(blockIdx.x % chunks) * kTokensOfBlock;
  double sums[kHeadSums] = {};
  for (int i = 0; i < kTokensOfBlock; i += Lanes::kRowsOfBlock) {
    const int t = begin + i + Lanes::Row();
    const bool valid = t < min(begin + kTokensOfBlock, in.size.seq_len);
    TokenBackward<Lanes>(in, TokenOfPair(in.size, pair, valid ? t : begin),
                         valid, sums);
  }
  SumOverBlock(sums);
  if (threadIdx.x != 0) return;
  for (int i = 0; i < kHeadSums; ++i) {
    partials[int64_t{blockIdx.x} * kHeadSums + i] = sums[i];
  }
}

// Gradients of the parameters of head blockIdx.x from the partial sums.
__global__ void __launch_bounds__(kThreads)
    HeadGradientsKernel(const double* partials, int64_t batch, int num_heads,
                        int chunks, float* d_scale, float* d_lower,
                        float* d_upper_scale) {
  const int64_t h = blockIdx.x;
  double sums[kHeadSums] = {};
  for (int64_t n = threadIdx.x; n < batch * chunks; n += kThreads) {
    const int64_t block = (n / chunks * num_heads + h) * chunks + n % chunks;
    for (int i = 0; i < kHeadSums; ++i)
      sums[i] += partials[block * kHeadSums + i];
  }
  SumOverBlock(sums);
  if (threadIdx.x != 0) return;
  d_scale[h] += static_cast<float>(sums[0]);
  if (d_lower == nullptr) return;
  d_lower[h] += static_cast<float>(sums[1]);
  d_upper_scale[h] += static_cast<float>(sums[2]);
}

struct ScalarsBackwardArguments {
  int num_heads, seq_len;
  View lrr, d_lrr;
  const float* upper_scale;
  const float* d_scale_shares;
  const float* d_value_scale;
};

// Tokens of one head that a thread and a thread block of this pass take.
constexpr int kScalarsOfThread = 4;
constexpr int kScalarsOfBlock = kScalarsOfThread * kThreads;

// d_lrr_logits, and the sums of a head over kScalarsOfBlock tokens as in
// FactorsBackwardKernel; neighbouring threads have neighbouring tokens. All
// loads come before the first store, which none could pass.
template <typename Element>
__global__ void __launch_bounds__(kThreads)
    ScalarsBackwardKernel(const ScalarsBackwardArguments in, int chunks,
                          double* partials) {
  const int pair = static_cast<int>(blockIdx.x) / chunks;
  const int begin = static_cast<int>(blockIdx.x) % chunks * kScalarsOfBlock;
  const int b = pair / in.num_heads;
  const int h = pair % in.num_heads;
  const int64_t row = static_cast<int64_t>(pair) * in.seq_len;
  const bool lrr = in.lrr.data != nullptr;
  float shares[kScalarsOfThread] = {};
  float d_values[kScalarsOfThread] = {};
  float logits[kScalarsOfThread] = {};
#pragma unroll
  for (int i = 0; i < kScalarsOfThread; ++i) {
    const int t = begin + i * kThreads + static_cast<int>(threadIdx.x);
    if (t >= in.seq_len) break;
    shares[i] = in.d_scale_shares[row + t];
    if (!lrr) continue;
    d_values[i] = in.d_value_scale[row + t];
    logits[i] = ToFloat(*in.lrr.Row<Element>(b, t, h));
  }
  double sums[kHeadSums] = {};
#pragma unroll
  for (int i = 0; i < kScalarsOfThread; ++i) {
    const int t = begin + i * kThreads + static_cast<int>(threadIdx.x);
    if (t >= in.seq_len) break;
    sums[0] += shares[i];
    if (!lrr) continue;
    *in.d_lrr.MutableRow<Element>(b, t, h) = FromFloat<Element>(
        LrrBackward(d_values[i], logits[i], in.upper_scale[h], sums));
  }
  SumOverBlock(sums);
  if (threadIdx.x != 0) return;
  for (int i = 0; i < kHeadSums; ++i) {
    partials[int64_t{blockIdx.x} * kHeadSums + i] = sums[i];
  }
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

template <int kCount>
__device__ void MaximaOverBlock(float (&x)[kCount]) {
  ReduceOverBlock(x, [](float a, float b) { return Larger(a, b); });
}

// Health of kTokensOfBlock tokens of one (sequence, head): -log of the smallest
// diagonal of P, largest |x|, largest |value_scale v|.
template <typename Lanes>
__global__ void __launch_bounds__(kThreads)
    HealthKernel(const HealthArguments in, int chunks, float* parts) {
  using Element = typename Lanes::Element;
  constexpr int kWidth = Lanes::kWidth;
  const int64_t pair = blockIdx.x / chunks;
  const int begin = static_cast<int>(blockIdx.x % chunks) * kTokensOfBlock;
  float largest[3] = {0, 0, 0};
  for (int i = 0; i < kTokensOfBlock; i += Lanes::kRowsOfBlock) {
    const int t = begin + i + Lanes::Row();
    const bool valid = t < min(begin + kTokensOfBlock, in.size.seq_len);
    const Token token = TokenOfPair(in.size, pair, valid ? t : begin);
    const float square = Square<Lanes>(
        in.r.Row<Element>(token.b, token.t, token.h), in.size.head_dim);
    if (!valid) continue;
    const Element* v = in.v.Row<Element>(token.b, token.t, token.h);
    const Element* x = in.x.Row<Element>(token.b, token.t, token.h);
    const float scale = in.value_scale[token.scalar];
    Lanes::ForColumns(in.size.head_dim, [&](int c) {
      const auto xs = LoadPack<Element, kWidth>(x + c);
      const auto vs = LoadPack<Element, kWidth>(v + c);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        largest[1] = Larger(fabsf(ToFloat(xs.values[k])), largest[1]);
        largest[2] = Larger(fabsf(scale * ToFloat(vs.values[k])), largest[2]);
      }
    });
    const float score = in.column_scale[token.scalar] * square;
    largest[0] = Larger(in.lse[token.scalar] - score, largest[0]);
  }
  MaximaOverBlock(largest);
  if (threadIdx.x != 0) return;
  for (int i = 0; i < 3; ++i) parts[int64_t{blockIdx.x} * 3 + i] = largest[i];
}

// By one thread block: the order does not matter to a maximum.
__global__ void __launch_bounds__(kThreads)
    ReduceHealthKernel(const float* parts, int num_parts,
                       const float* log_lambda, int num_heads, float* result) {
  float largest[4] = {0, 0, 0, log_lambda[0]};
  for (int part = threadIdx.x; part < num_parts; part += kThreads) {
    for (int i = 0; i < 3; ++i) {
      largest[i] = Larger(parts[part * 3 + i], largest[i]);
    }
  }
  for (int h = threadIdx.x; h < num_heads; h += kThreads) {
    largest[3] = Larger(log_lambda[h], largest[3]);
  }
  MaximaOverBlock(largest);
  if (threadIdx.x != 0) return;
  result[0] = expf(-largest[0]);
  result[1] = largest[2] == 0 ? 0 : largest[1] / largest[2];
  result[2] = expf(largest[3]);
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

// Calls use(RowLanes) with what fits rows of `dim` elements; `aligned`: they
// are whole 16-byte vectors.
template <typename Element, typename Use>
void WithLanesOf(int64_t dim, bool aligned, const Use& use) {
  constexpr int kWidth = cuda::kVectorWidth<Element>;
  if (!aligned) return use(RowLanes<Element, 32, 1>());
  const int64_t vectors = dim / kWidth;
  if (vectors <= 4) return use(RowLanes<Element, 4, kWidth>());
  if (vectors <= 8) return use(RowLanes<Element, 8, kWidth>());
  if (vectors <= 16) return use(RowLanes<Element, 16, kWidth>());
  use(RowLanes<Element, 32, kWidth>());
}
template <typename Use>
void WithLanes(const ConstHeadTensor& r, bool aligned, const Use& use) {
  if (r.dtype == DType::kBFloat16) {
    WithLanesOf<__nv_bfloat16>(r.head_dim, aligned, use);
  } else {
    WithLanesOf<float>(r.head_dim, aligned, use);
  }
}

const float* DataOrNull(const ConstTensor& x) {
  return x.empty() ? nullptr : x.data<float>();
}

// What a launch of either backward leaves: sums of each block, in work space.
struct BlockSums {
  double* partials;  // [batch, heads, chunks, kHeadSums]
  int64_t batch, num_heads, chunks;

  BlockSums(int64_t batch_size, int64_t heads, int64_t chunks_of_sequence,
            Stream& stream)
      : batch(batch_size), num_heads(heads), chunks(chunks_of_sequence) {
    partials = static_cast<double*>(CudaWorkspace(
        blocks() * kHeadSums * static_cast<int64_t>(sizeof(double)), stream));
  }
  int64_t blocks() const { return batch * num_heads * chunks; }
};

// d_lower and d_upper_scale may be absent.
void AddBlockSums(const BlockSums& sums, const Tensor& d_scale,
                  const Tensor& d_lower, const Tensor& d_upper_scale,
                  Stream& stream) {
  HeadGradientsKernel<<<static_cast<unsigned>(sums.num_heads), kThreads, 0,
                        CudaStream(stream)>>>(
      sums.partials, sums.batch, static_cast<int>(sums.num_heads),
      static_cast<int>(sums.chunks), d_scale.data<float>(),
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
  WithLanes(r, cuda::HasRowsOf(r, 16), [&](auto lanes) {
    using Lanes = decltype(lanes);
    FactorsKernel<Lanes>
        <<<cuda::CeilDivide(in.size.num_tokens, Lanes::kRowsOfBlock), kThreads,
           0, CudaStream(stream)>>>(in);
  });
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
  const bool aligned = cuda::HasRowsOf(r, 16) && cuda::HasRowsOf(d_r, 16);
  const BlockSums sums(r.batch, r.num_heads, ChunksOfSequence(in.size), stream);
  WithLanes(r, aligned, [&](auto lanes) {
    FactorsBackwardKernel<decltype(lanes)>
        <<<static_cast<unsigned>(sums.blocks()), kThreads, 0,
           CudaStream(stream)>>>(in, static_cast<int>(sums.chunks),
                                 sums.partials);
  });
  CUBIT_CUDA_CHECK_LAUNCH();
  AddBlockSums(sums, d_scale, d_lower, d_upper_scale, stream);
}

void KrrScalarsBackward(ConstHeadTensor lrr_logits, ConstTensor upper_scale,
                        ConstTensor d_scale_shares, ConstTensor d_value_scale,
                        HeadTensor d_lrr_logits, Tensor d_scale, Tensor d_lower,
                        Tensor d_upper_scale, Stream& stream) {
  const Shape& shape = d_scale_shares.shape();
  const bool lrr = !lrr_logits.empty();
  CUBIT_CHECK(d_value_scale.shape() == shape) << shape.ToString();
  CUBIT_CHECK_SHAPE(d_scale, {shape[1]});
  CUBIT_CHECK(d_lrr_logits.empty() != lrr && upper_scale.empty() != lrr);
  CUBIT_CHECK(d_lower.empty() != lrr && d_upper_scale.empty() != lrr);
  if (lrr) CheckView(d_lrr_logits, "d_lrr_logits", lrr_logits, 1);
  if (shape.num_elements() == 0) return;
  const ScalarsBackwardArguments in = {
      static_cast<int>(shape[1]), static_cast<int>(shape[2]),
      ViewOf(lrr_logits),         ViewOf(d_lrr_logits),
      DataOrNull(upper_scale),    d_scale_shares.data<float>(),
      d_value_scale.data<float>()};
  const BlockSums sums(shape[0], shape[1],
                       cuda::CeilDivide(shape[2], kScalarsOfBlock), stream);
  const auto kernel = lrr && lrr_logits.dtype == DType::kBFloat16
                          ? &ScalarsBackwardKernel<__nv_bfloat16>
                          : &ScalarsBackwardKernel<float>;
  kernel<<<static_cast<unsigned>(sums.blocks()), kThreads, 0,
           CudaStream(stream)>>>(in, static_cast<int>(sums.chunks),
                                 sums.partials);
  CUBIT_CUDA_CHECK_LAUNCH();
  AddBlockSums(sums, d_scale, d_lower, d_upper_scale, stream);
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
  const int64_t chunks = ChunksOfSequence(in.size);
  const int64_t num_parts = r.batch * r.num_heads * chunks;
  CUBIT_CHECK_GT(num_parts, 0);
  float* parts = static_cast<float*>(
      CudaWorkspace(num_parts * 3 * int64_t{sizeof(float)}, stream));
  const bool aligned = cuda::HasRowsOf(r, 16) && cuda::HasRowsOf(v, 16) &&
                       cuda::HasRowsOf(x, 16);
  WithLanes(r, aligned, [&](auto lanes) {
    HealthKernel<decltype(lanes)>
        <<<static_cast<unsigned>(num_parts), kThreads, 0, CudaStream(stream)>>>(
            in, static_cast<int>(chunks), parts);
  });
  CUBIT_CUDA_CHECK_LAUNCH();
  ReduceHealthKernel<<<1, kThreads, 0, CudaStream(stream)>>>(
      parts, static_cast<int>(num_parts), log_lambda.data<float>(),
      static_cast<int>(r.num_heads), result.data<float>());
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace cubit
