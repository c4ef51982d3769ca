// SPDX-License-Identifier: Apache-2.0
//
// Health of a KRR solve: maxima over all rows, one pass over r, v and x.

#include <cstdint>

#include "ops/cuda/head_views.cuh"
#include "ops/cuda/krr_health.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/cuda/row_lanes.cuh"
#include "ops/krr.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

using cuda::kHealthNumbers;
using cuda::kLargestV;
using cuda::kLargestX;
using cuda::kMinusDiagonal;
using cuda::kRowThreads;
using cuda::Larger;
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

// A part of the health from kRowsOfThread rows for each row of the block. Grid:
// rows of a sequence, batch. Threads beyond the last row take it again.
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
  // The diagonal as -log until there is one number of it.
  float largest[kHealthNumbers] = {0, maxima.largest_x, 0};
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    const float score = column_scale[i] * Lanes::Sum(maxima.squares[i]);
    largest[kMinusDiagonal] = Larger(lse[i] - score, largest[kMinusDiagonal]);
    largest[kLargestV] =
        Larger(fabsf(value_scale[i]) * maxima.largest_v[i], largest[kLargestV]);
  }
  cuda::ReduceOverBlock(largest, [](float a, float b) { return Larger(a, b); });
  if (threadIdx.x != 0) return;
  largest[kMinusDiagonal] = -expf(-largest[kMinusDiagonal]);
  float* part =
      parts + (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * kHealthNumbers;
  for (int i = 0; i < kHealthNumbers; ++i) part[i] = largest[i];
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
    float* parts = static_cast<float*>(CudaWorkspace(
        int64_t{num_parts} * kHealthNumbers * int64_t{sizeof(float)}, stream));
    HealthKernel<Lanes>
        <<<grid, kRowThreads, 0, CudaStream(stream)>>>(in, parts);
    CUBIT_CUDA_CHECK_LAUNCH();
    cuda::ReduceHealth(parts, num_parts, log_lambda.data<float>(),
                       static_cast<int>(r.num_heads), result.data<float>(),
                       CudaStream(stream));
  });
}

}  // namespace cubit
