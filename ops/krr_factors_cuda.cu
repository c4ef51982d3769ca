// SPDX-License-Identifier: Apache-2.0
//
// The per-token factors around the KRR solve: O(T K) each way.

#include <cstdint>

#include <cuda_bf16.h>

#include "ops/cuda/head_views.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/cuda/rotation.cuh"
#include "ops/cuda/row_lanes.cuh"
#include "ops/krr.h"
#include "ops/rotary.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

constexpr float kEpsilon = static_cast<float>(kKrrNormEpsilon);
constexpr int kThreads = cuda::kRowThreads;
using cuda::FromFloat;
using cuda::LoadPack;
using cuda::NthRow;
using cuda::RowAt;
using cuda::RowView;
using cuda::SequenceRow;
using cuda::SequenceRows;
using cuda::StorePack;
using cuda::ToFloat;
using cuda::ViewOf;

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

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

// Blocks of FactorsKernel on a multiprocessor: 40 KB of r in flight where it is
// rotated, which registers would not leave.
constexpr int kFactorsBlocks = 5;

struct FactorsArguments {
  SequenceRows rows;
  RowView r, lrr;
  const float* angles;  // [T, K], where r is rotated
  const float* scale;
  const float* lower;
  const float* upper_scale;
  float* column_scale;
  float* value_scale;
};

// Turns a row in place; the lanes hold packs of its first half and those K/2
// behind. Returns this thread's part of |row|^2, of the elements as they are
// stored.
template <typename Lanes>
__device__ float TurnRow(typename Lanes::Element* row,
                         const float* angles_of_row, int dim) {
  using Element = typename Lanes::Element;
  constexpr int kWidth = Lanes::kWidth;
  const int half = dim / 2;
  float square = 0;
  Lanes::ForColumns(half, [&](int c) {
    cuda::RawPack<Element, kWidth> low, high;
    low.Load(row + c);
    high.Load(row + half + c);
    cuda::Angles<kWidth> angles;
    angles.Load(angles_of_row, half, c, 1.0f);
    cuda::Pack<Element, kWidth> turned_low, turned_high;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      float a = low.Get(i);
      float b = high.Get(i);
      angles.Turn(i, &a, &b);
      turned_low.values[i] = FromFloat<Element>(a);
      turned_high.values[i] = FromFloat<Element>(b);
      a = ToFloat(turned_low.values[i]);
      b = ToFloat(turned_high.values[i]);
      square = fmaf(b, b, fmaf(a, a, square));
    }
    StorePack(turned_low, row + c);
    StorePack(turned_high, row + half + c);
  });
  return square;
}

// Grid: rows of a sequence, batch. kTurns: r is rotated in place, and kLanes
// hold half a row.
template <typename Lanes, bool kTurns>
__global__ void __launch_bounds__(kThreads, kFactorsBlocks)
    FactorsKernel(const __grid_constant__ FactorsArguments in) {
  using Element = typename Lanes::Element;
  const unsigned n = blockIdx.x * Lanes::kRowsOfBlock + Lanes::Row();
  const bool valid = n < in.rows.count();
  const SequenceRow row =
      NthRow(in.rows, static_cast<int>(blockIdx.y), valid ? n : 0);
  const int dim = in.rows.head_dim;
  float logit = 0;
  if (in.lrr.data != nullptr) {
    logit = ToFloat(*in.lrr.Row<Element>(row.b, row.t, row.h));
  }
  float square = 0;
  if constexpr (kTurns) {
    if (valid) {
      square =
          TurnRow<Lanes>(in.r.MutableRow<Element>(row.b, row.t, row.h),
                         in.angles + static_cast<int64_t>(row.t) * dim, dim);
    }
    square = Lanes::Sum(square);
  } else {
    square = Square<Lanes>(in.r.Row<Element>(row.b, row.t, row.h), dim);
  }
  if (!valid || Lanes::Lane() != 0) return;
  in.column_scale[row.scalar] = in.scale[row.h] / sqrtf(square + kEpsilon);
  in.value_scale[row.scalar] =
      in.lrr.data == nullptr
          ? 1.0f
          : in.lower[row.h] + in.upper_scale[row.h] * Sigmoid(logit);
}

struct FactorsBackwardArguments {
  SequenceRows rows;
  RowView r, lrr, d_r, d_lrr;
  const float* scale;
  const float* upper_scale;
  const float* d_column_scale;
  const float* d_value_scale;
};

// Tokens of one head that a thread block takes.
constexpr int kTokensOfBlock = 64;
// Sums for d_scale, d_lower and d_upper_scale.
constexpr int kHeadSums = 3;

struct Plus {
  __device__ double operator()(double a, double b) const { return a + b; }
};

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
                              const SequenceRow& token, bool valid,
                              double (&sums)[kHeadSums]) {
  using Element = typename Lanes::Element;
  constexpr int kWidth = Lanes::kWidth;
  const Element* row = in.r.Row<Element>(token.b, token.t, token.h);
  const float square = Square<Lanes>(row, in.rows.head_dim) + kEpsilon;
  if (!valid) return;
  const float inverse = rsqrtf(square);
  const float d_column_scale = in.d_column_scale[token.scalar];
  const float factor =
      -d_column_scale * in.scale[token.h] * inverse * inverse * inverse;
  Element* d_row = in.d_r.MutableRow<Element>(token.b, token.t, token.h);
  Lanes::ForColumns(in.rows.head_dim, [&](int c) {
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
  const int pair = static_cast<int>(blockIdx.x) / chunks;
  const int begin = static_cast<int>(blockIdx.x) % chunks * kTokensOfBlock;
  const int heads = static_cast<int>(in.rows.num_heads);
  const int seq_len = static_cast<int>(in.rows.seq_len);
  double sums[kHeadSums] = {};
  for (int i = 0; i < kTokensOfBlock; i += Lanes::kRowsOfBlock) {
    const int t = begin + i + Lanes::Row();
    const bool valid = t < min(begin + kTokensOfBlock, seq_len);
    TokenBackward<Lanes>(
        in, RowAt(in.rows, pair / heads, valid ? t : begin, pair % heads),
        valid, sums);
  }
  cuda::ReduceOverBlock(sums, Plus());
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
  cuda::ReduceOverBlock(sums, Plus());
  if (threadIdx.x != 0) return;
  d_scale[h] += static_cast<float>(sums[0]);
  if (d_lower == nullptr) return;
  d_lower[h] += static_cast<float>(sums[1]);
  d_upper_scale[h] += static_cast<float>(sums[2]);
}

struct ScalarsBackwardArguments {
  int num_heads, seq_len;
  RowView lrr, d_lrr;
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
  cuda::ReduceOverBlock(sums, Plus());
  if (threadIdx.x != 0) return;
  for (int i = 0; i < kHeadSums; ++i) {
    partials[int64_t{blockIdx.x} * kHeadSums + i] = sums[i];
  }
}

void CheckLrr(const ConstHeadTensor& r, const ConstHeadTensor& lrr_logits,
              const ConstTensor& lower, const ConstTensor& upper_scale) {
  CUBIT_CHECK_EQ(lrr_logits.empty(), lower.empty());
  CUBIT_CHECK_EQ(lrr_logits.empty(), upper_scale.empty());
  if (lrr_logits.empty()) return;
  cuda::CheckView(lrr_logits, "lrr_logits", r, 1);
  CUBIT_CHECK_SHAPE(lower, {r.num_heads});
  CUBIT_CHECK_SHAPE(upper_scale, {r.num_heads});
}

void CheckFactors(const ConstHeadTensor& r, const ConstHeadTensor& lrr_logits,
                  const ConstTensor& scale, const ConstTensor& lower,
                  const ConstTensor& upper_scale,
                  const ConstTensor& column_scale,
                  const ConstTensor& value_scale) {
  CheckLrr(r, lrr_logits, lower, upper_scale);
  CUBIT_CHECK_SHAPE(scale, {r.num_heads});
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(value_scale, {r.batch, r.num_heads, r.seq_len});
}

template <typename Lanes, bool kTurns>
void LaunchFactors(const FactorsArguments& in, int64_t batch, Stream& stream) {
  if (in.rows.count() * batch == 0) return;
  const dim3 grid(static_cast<unsigned>(
                      cuda::CeilDivide(in.rows.count(), Lanes::kRowsOfBlock)),
                  static_cast<unsigned>(batch));
  FactorsKernel<Lanes, kTurns><<<grid, kThreads, 0, CudaStream(stream)>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
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
  CheckFactors(r, lrr_logits, scale, lower, upper_scale, column_scale,
               value_scale);
  const FactorsArguments in = {
      cuda::RowsOfSequence(r),  ViewOf(r),
      ViewOf(lrr_logits),       nullptr,
      scale.data<float>(),      DataOrNull(lower),
      DataOrNull(upper_scale),  column_scale.data<float>(),
      value_scale.data<float>()};
  cuda::WithLanes(r.dtype, r.head_dim, cuda::HasRowsOf(r, 16), [&](auto lanes) {
    LaunchFactors<decltype(lanes), false>(in, r.batch, stream);
  });
}

void KrrRotaryFactorsForward(ConstTensor rotary_table, int64_t first_position,
                             HeadTensor r, ConstHeadTensor lrr_logits,
                             ConstTensor scale, ConstTensor lower,
                             ConstTensor upper_scale, Tensor column_scale,
                             Tensor value_scale, Stream& stream) {
  if (rotary_table.empty()) {
    return KrrFactorsForward(r, lrr_logits, scale, lower, upper_scale,
                             column_scale, value_scale, stream);
  }
  CheckFactors(r, lrr_logits, scale, lower, upper_scale, column_scale,
               value_scale);
  CheckRotary(rotary_table, first_position, r);
  const int64_t half = r.head_dim / 2;
  const float* angles =
      rotary_table.data<float>() + first_position * r.head_dim;
  const FactorsArguments in = {
      cuda::RowsOfSequence(r),  ViewOf(r),
      ViewOf(lrr_logits),       angles,
      scale.data<float>(),      DataOrNull(lower),
      DataOrNull(upper_scale),  column_scale.data<float>(),
      value_scale.data<float>()};
  const bool aligned = cuda::HasRowsOf(r, 16) &&
                       half * SizeOf(r.dtype) % 16 == 0 &&
                       cuda::IsAligned16(angles);
  cuda::WithLanes(r.dtype, half, aligned, [&](auto lanes) {
    LaunchFactors<decltype(lanes), true>(in, r.batch, stream);
  });
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
  cuda::CheckView(d_r, "d_r", r, r.head_dim);
  CUBIT_CHECK_SHAPE(scale, {r.num_heads});
  CUBIT_CHECK_SHAPE(d_scale, {r.num_heads});
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(d_column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(d_value_scale, {r.batch, r.num_heads, r.seq_len});
  const FactorsBackwardArguments in = {
      cuda::RowsOfSequence(r),    ViewOf(r),
      ViewOf(lrr_logits),         ViewOf(d_r),
      ViewOf(d_lrr_logits),       scale.data<float>(),
      DataOrNull(upper_scale),    d_column_scale.data<float>(),
      d_value_scale.data<float>()};
  if (in.rows.count() * r.batch == 0) return;
  const bool aligned = cuda::HasRowsOf(r, 16) && cuda::HasRowsOf(d_r, 16);
  const BlockSums sums(r.batch, r.num_heads,
                       cuda::CeilDivide(r.seq_len, kTokensOfBlock), stream);
  cuda::WithLanes(r.dtype, r.head_dim, aligned, [&](auto lanes) {
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
  if (lrr) cuda::CheckView(d_lrr_logits, "d_lrr_logits", lrr_logits, 1);
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

}  // namespace cubit
