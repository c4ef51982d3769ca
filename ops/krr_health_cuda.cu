// SPDX-License-Identifier: Apache-2.0
//
// Health of a KRR solve: maxima over all rows, one pass over r, v and x.

#include <cstdint>

#include "ops/cuda/head_views.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/cuda/row_lanes.cuh"
#include "ops/krr.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

using cuda::kRowThreads;
using cuda::RawPack;

struct HealthArguments {
  cuda::SequenceRows rows;
  cuda::RowView r, v, x;
  const float* column_scale;
  const float* value_scale;
  const float* lse;
};

// Rows that a thread takes part in: all their loads are in flight at once.
constexpr int kRowsOfThread = 4;

// Larger of two numbers; NaN is larger than everything.
__device__ __forceinline__ float Larger(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

template <int kCount>
__device__ void MaximaOverBlock(float (&x)[kCount]) {
  cuda::ReduceOverBlock(x, [](float a, float b) { return Larger(a, b); });
}

// What a thread learns of its rows.
struct RowMaxima {
  float squares[kRowsOfThread] = {};    // of its columns of r
  float largest_v[kRowsOfThread] = {};  // |v|, before value_scale
  float largest_x = 0;
};

// Adds the columns [c, c + kWidth) of the rows. A thread without columns takes
// the first ones again, which no maximum notices.
template <typename Lanes>
__device__ __forceinline__ void AddColumns(
    const typename Lanes::Element* const (&r)[kRowsOfThread],
    const typename Lanes::Element* const (&v)[kRowsOfThread],
    const typename Lanes::Element* const (&x)[kRowsOfThread], int c, int dim,
    RowMaxima* maxima) {
  using Raw = RawPack<typename Lanes::Element, Lanes::kWidth>;
  const bool has_columns = c < dim;
  if (!has_columns) c = 0;
  Raw rs[kRowsOfThread], vs[kRowsOfThread], xs[kRowsOfThread];
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    rs[i].Load(r[i] + c);
    vs[i].Load(v[i] + c);
    xs[i].Load(x[i] + c);
  }
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
#pragma unroll
    for (int k = 0; k < Lanes::kWidth; ++k) {
      const float element = has_columns ? rs[i].Get(k) : 0.0f;
      maxima->squares[i] = fmaf(element, element, maxima->squares[i]);
      maxima->largest_v[i] = Larger(fabsf(vs[i].Get(k)), maxima->largest_v[i]);
      maxima->largest_x = Larger(fabsf(xs[i].Get(k)), maxima->largest_x);
    }
  }
}

// Health of kRowsOfThread rows for each row of the block: -log of the smallest
// diagonal of P, largest |x|, largest |value_scale v|. Grid: rows of a
// sequence, batch. Threads beyond the last row take it again.
template <typename Lanes>
__global__ void __launch_bounds__(kRowThreads)
    HealthKernel(const __grid_constant__ HealthArguments in, float* parts) {
  using Element = typename Lanes::Element;
  const unsigned first =
      blockIdx.x * (Lanes::kRowsOfBlock * kRowsOfThread) + Lanes::Row();
  const Element* r[kRowsOfThread];
  const Element* v[kRowsOfThread];
  const Element* x[kRowsOfThread];
  float column_scale[kRowsOfThread];
  float value_scale[kRowsOfThread];
  float lse[kRowsOfThread];
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    const cuda::SequenceRow row =
        cuda::NthRow(in.rows, static_cast<int>(blockIdx.y),
                     min(first + i * Lanes::kRowsOfBlock, in.rows.count() - 1));
    r[i] = in.r.Row<Element>(row.b, row.t, row.h);
    v[i] = in.v.Row<Element>(row.b, row.t, row.h);
    x[i] = in.x.Row<Element>(row.b, row.t, row.h);
    column_scale[i] = in.column_scale[row.scalar];
    value_scale[i] = in.value_scale[row.scalar];
    lse[i] = in.lse[row.scalar];
  }
  RowMaxima maxima;
  const int dim = in.rows.head_dim;
  for (int begin = 0; begin < dim; begin += Lanes::kColumns) {
    AddColumns<Lanes>(r, v, x, begin + Lanes::Lane() * Lanes::kWidth, dim,
                      &maxima);
  }
  float largest[3] = {0, maxima.largest_x, 0};
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    const float score = column_scale[i] * Lanes::Sum(maxima.squares[i]);
    largest[0] = Larger(lse[i] - score, largest[0]);
    largest[2] =
        Larger(fabsf(value_scale[i]) * maxima.largest_v[i], largest[2]);
  }
  MaximaOverBlock(largest);
  if (threadIdx.x != 0) return;
  float* part = parts + (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * 3;
  for (int i = 0; i < 3; ++i) part[i] = largest[i];
}

// By one thread block: the order does not matter to a maximum.
__global__ void __launch_bounds__(kRowThreads)
    ReduceHealthKernel(const float* parts, int num_parts,
                       const float* log_lambda, int num_heads, float* result) {
  float largest[4] = {0, 0, 0, log_lambda[0]};
#pragma unroll 4
  for (int part = threadIdx.x; part < num_parts; part += kRowThreads) {
    for (int i = 0; i < 3; ++i) {
      largest[i] = Larger(parts[part * 3 + i], largest[i]);
    }
  }
  for (int h = threadIdx.x; h < num_heads; h += kRowThreads) {
    largest[3] = Larger(log_lambda[h], largest[3]);
  }
  MaximaOverBlock(largest);
  if (threadIdx.x != 0) return;
  result[0] = expf(-largest[0]);
  result[1] = largest[2] == 0 ? 0 : largest[1] / largest[2];
  result[2] = expf(largest[3]);
}

}  // namespace

void KrrHealth(ConstHeadTensor r, ConstHeadTensor v, ConstTensor column_scale,
               ConstTensor value_scale, ConstTensor log_lambda,
               ConstHeadTensor x, ConstTensor lse, Tensor result,
               Stream& stream) {
  CUBIT_CHECK_SHAPE(result, {3});
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(value_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(lse, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(log_lambda, {r.num_heads});
  cuda::CheckView(v, "v", r, r.head_dim);
  cuda::CheckView(x, "x", r, r.head_dim);
  const HealthArguments in = {cuda::RowsOfSequence(r),
                              cuda::ViewOf(r),
                              cuda::ViewOf(v),
                              cuda::ViewOf(x),
                              column_scale.data<float>(),
                              value_scale.data<float>(),
                              lse.data<float>()};
  CUBIT_CHECK_GT(in.rows.count() * r.batch, 0);
  const bool aligned = cuda::HasRowsOf(r, 16) && cuda::HasRowsOf(v, 16) &&
                       cuda::HasRowsOf(x, 16);
  cuda::WithLanes(r.dtype, r.head_dim, aligned, [&](auto lanes) {
    using Lanes = decltype(lanes);
    const dim3 grid(static_cast<unsigned>(cuda::CeilDivide(
                        in.rows.count(), Lanes::kRowsOfBlock * kRowsOfThread)),
                    static_cast<unsigned>(r.batch));
    const int num_parts = static_cast<int>(grid.x * grid.y);
    float* parts = static_cast<float*>(
        CudaWorkspace(int64_t{num_parts} * 3 * int64_t{sizeof(float)}, stream));
    HealthKernel<Lanes>
        <<<grid, kRowThreads, 0, CudaStream(stream)>>>(in, parts);
    CUBIT_CUDA_CHECK_LAUNCH();
    ReduceHealthKernel<<<1, kRowThreads, 0, CudaStream(stream)>>>(
        parts, num_parts, log_lambda.data<float>(),
        static_cast<int>(r.num_heads), result.data<float>());
    CUBIT_CUDA_CHECK_LAUNCH();
  });
}

}  // namespace cubit
