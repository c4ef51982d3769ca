// SPDX-License-Identifier: Apache-2.0

#include <cstdio>

#include "ops/chunked_solve.h"
#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_rows.cuh"
#include "ops/cuda/chunk_views.h"
#include "ops/cuda/solve_queue.cuh"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
namespace {

constexpr auto kFloat32 = ChunkDTypes::kFloat32;
constexpr auto kEither = ChunkDTypes::kFloat32OrBFloat16;
// Products of fp32 tensors, as in krr.h.
constexpr auto kProducts = ChunkProducts::kBFloat16x3;

struct BeginRow {
  ChunkHeads r;
  const float* column_scale;
  float* row_max;
  double* row_sum;
  ChunkHeads weighted;
  bool keeps_max = false;

  __device__ void Start(const ChunkExtents& extents, int pair) {
    keeps_max =
        KeepsRowMax(column_scale, static_cast<int64_t>(pair) * extents.seq_len);
  }
  __device__ void operator()(const ChunkRowPlace& place, int head_dim) const {
    const int lane = threadIdx.x % kWarpSize;
    const float square = RowDot<float>(r, r, place, head_dim);
    if (lane == 0) {
      row_max[place.scalar] =
          keeps_max ? square * column_scale[place.scalar] : -INFINITY;
      row_sum[place.scalar] = 0;
    }
    for (int c = lane; c < head_dim; c += kWarpSize) {
      StoreChunkElement(0.0f, weighted, place.In(weighted) + c);
    }
  }
};

struct RowGradients {
  ChunkHeads v, x, kernel_x, y, d_v;
  const float* value_scale;
  const float* log_lambda;
  float* d_value_scale;
  float* delta;
  double* y_dot_x;  // [B, H, T]
  double lambda = 0;

  __device__ void Start(const ChunkExtents& extents, int pair) {
    const int h = pair % extents.num_heads;
    lambda = exp(static_cast<double>(log_lambda[h]));
    if (lambda <= 1 || !kernel_x.empty()) return;
    if (threadIdx.x == 0) {
      printf("lambda is %g in head %d, kernel_x is absent\n", lambda, h);
    }
    __trap();
  }
  __device__ void operator()(const ChunkRowPlace& place, int head_dim) const {
    const int lane = threadIdx.x % kWarpSize;
    const double y_dot_v = RowDot<double>(y, v, place, head_dim);
    const double product = RowDot<double>(y, x, place, head_dim);
    const float scale = value_scale[place.scalar];
    float minus_delta;
    if (lambda <= 1) {
      minus_delta = static_cast<float>(static_cast<double>(scale) * y_dot_v -
                                       lambda * product);
    } else {
      minus_delta = RowDot<float>(y, kernel_x, place, head_dim);
    }
    // d_v may be y: every lane has read its elements above.
    for (int c = lane; c < head_dim; c += kWarpSize) {
      StoreChunkElement(scale * ChunkElement(y, place.In(y) + c), d_v,
                        place.In(d_v) + c);
    }
    if (lane != 0) return;
    delta[place.scalar] = -minus_delta;
    d_value_scale[place.scalar] = static_cast<float>(y_dot_v);
    y_dot_x[place.scalar] = product;
  }
};

struct LambdaGradient {
  ChunkExtents extents;
  const double* y_dot_x;  // [B, H, T]
  const float* log_lambda;
  float* d_log_lambda;
};

// One block a head: d_log_lambda -= lambda sum of y . x, in a fixed order.
__global__ void __launch_bounds__(kChunkThreads)
    LambdaGradientKernel(const __grid_constant__ LambdaGradient in) {
  __shared__ double partials[kChunkThreads / kWarpSize];
  const int h = blockIdx.x;
  double sum = 0;
  for (int b = 0; b < in.extents.batch; ++b) {
    const double* row =
        in.y_dot_x +
        static_cast<int64_t>(b * in.extents.num_heads + h) * in.extents.seq_len;
    for (int i = threadIdx.x; i < in.extents.seq_len; i += kChunkThreads) {
      sum += row[i];
    }
  }
  sum = BlockSum(sum, partials);
  if (threadIdx.x != 0) return;
  const double lambda = exp(static_cast<double>(in.log_lambda[h]));
  in.d_log_lambda[h] += static_cast<float>(-lambda * sum);
}

struct FinishRow {
  ChunkHeads r, d_queries, d_keys, d_r;
  const float* column_scale;
  const double* row_sums;
  float* d_column_scale;

  __device__ void Start(const ChunkExtents&, int) {}
  __device__ void operator()(const ChunkRowPlace& place, int head_dim) const {
    const int lane = threadIdx.x % kWarpSize;
    const float scale = column_scale[place.scalar];
    const float d_self = static_cast<float>(-row_sums[place.scalar]);
    float dot = 0;
    for (int c = lane; c < head_dim; c += kWarpSize) {
      const float row = ChunkElement(r, place.In(r) + c);
      const float d_query = ChunkElement(d_queries, place.In(d_queries) + c);
      const float d_key =
          ChunkElement(d_keys, place.In(d_keys) + c) + d_self * row;
      StoreChunkElement(d_query + d_self * (scale * row) + scale * d_key, d_r,
                        place.In(d_r) + c);
      dot += row * d_key;
    }
    dot = WarpSum(dot);
    if (lane == 0) d_column_scale[place.scalar] = dot;
  }
};

void CheckKrrChunk(const KrrChunk& chunk) {
  CheckChunkScalars(chunk.column_scale, "column_scale", chunk.r);
}

void CheckRightSide(const KrrRightSide& right, const ConstHeadTensor& like) {
  CheckChunkScalars(right.value_scale, "value_scale", like);
  CUBIT_CHECK_SHAPE(right.log_lambda, {like.num_heads});
}

ChunkArguments PairOf(const KrrChunk& rows, const KrrChunk& columns,
                      bool diagonal, bool strict) {
  CheckKrrChunk(rows);
  CheckKrrChunk(columns);
  ChunkArguments in = PairOfChunks(rows.r, "r", columns.r, "r of columns",
                                   {diagonal, rows.segments, columns.segments},
                                   strict, /*scale=*/1);
  in.column_scale = columns.column_scale.data<float>();
  in.row_scale = rows.column_scale.data<float>();
  in.row_factor = -1;
  return in;
}

ChunkSolveArguments SolveOf(const KrrChunk& chunk,
                            const ConstTensor& log_lambda, Stream& stream) {
  const ConstHeadTensor& r = chunk.r;
  CUBIT_CHECK_SHAPE(log_lambda, {r.num_heads});
  ChunkSolveArguments in;
  in.chunk = PairOf(chunk, chunk, /*diagonal=*/true, /*strict=*/false);
  in.chunk.row_factor = 1;
  in.log_lambda = log_lambda.data<float>();
  in.queue = GetSolveQueue(
      r.batch * r.num_heads * ((r.seq_len + kChunkRows - 1) / kChunkRows),
      stream);
  return in;
}

}  // namespace
}  // namespace cuda

void BeginKrrRows(const KrrChunk& rows, const RowSums& sums, Stream& stream) {
  cuda::CheckKrrChunk(rows);
  cuda::ChunkArguments in;
  cuda::SetChunkSums(sums, rows.r, &in);
  cuda::LaunchChunkRowsPass(
      cuda::ExtentsOf(rows.r),
      cuda::BeginRow{cuda::ChunkHeadsOf(rows.r, "r", rows.r, cuda::kEither),
                     rows.column_scale.data<float>(), in.row_max, in.row_sum,
                     in.weighted},
      CudaStream(stream));
}

void KrrChunkUpdate(const KrrChunk& rows, const KrrChunk& columns,
                    ConstHeadTensor x_columns, const RowSums& sums,
                    Stream& stream) {
  cuda::ChunkArguments in =
      cuda::PairOf(rows, columns, /*diagonal=*/false, /*strict=*/false);
  in.x = cuda::ChunkHeadsOf(x_columns, "x_columns", columns.r, cuda::kEither);
  cuda::SetChunkSums(sums, rows.r, &in);
  cuda::ChunkForward(cuda::ProductsOf(rows.r, cuda::kProducts), in,
                     CudaStream(stream));
}

void KrrChunkSolve(const KrrChunk& rows, const KrrRightSide& right,
                   const RowSums& sums, HeadTensor x, Tensor lse,
                   HeadTensor kernel_x, Stream& stream) {
  const ConstHeadTensor& r = rows.r;
  cuda::CheckRightSide(right, r);
  cuda::CheckChunkScalars(lse, "lse", r);
  cuda::ChunkSolveArguments in = cuda::SolveOf(rows, right.log_lambda, stream);
  cuda::SetChunkSums(sums, r, &in.chunk);
  in.chunk.x = cuda::ChunkHeadsOf(x, "x", r, cuda::kEither);
  in.v = cuda::ChunkHeadsOf(right.v, "v", r, cuda::kEither);
  if (!kernel_x.empty()) {
    in.kernel_x = cuda::ChunkHeadsOf(kernel_x, "kernel_x", r, cuda::kFloat32);
  }
  in.lse = lse.data<float>();
  in.value_scale = right.value_scale.data<float>();
  cuda::ChunkSolve(cuda::ProductsOf(r, cuda::kProducts), in, stream);
}

void KrrChunkAdjointUpdate(const KrrChunk& rows, ConstTensor lse_rows,
                           ConstHeadTensor y_rows, const KrrChunk& columns,
                           HeadTensor g, Stream& stream) {
  cuda::ChunkArguments in =
      cuda::PairOf(rows, columns, /*diagonal=*/false, /*strict=*/false);
  cuda::CheckChunkScalars(lse_rows, "lse_rows", rows.r);
  in.lse = lse_rows.data<float>();
  in.y = cuda::ChunkHeadsOf(y_rows, "y_rows", rows.r, cuda::kEither);
  in.d_values = cuda::ChunkHeadsOf(g, "g", columns.r, cuda::kFloat32);
  cuda::ChunkColumns(cuda::ProductsOf(rows.r, cuda::kProducts), in,
                     CudaStream(stream));
}

void KrrChunkAdjointSolve(const KrrChunk& chunk, ConstTensor lse,
                          ConstTensor log_lambda, ConstHeadTensor g,
                          HeadTensor y, Stream& stream) {
  const ConstHeadTensor& r = chunk.r;
  cuda::CheckChunkScalars(lse, "lse", r);
  cuda::ChunkSolveArguments in = cuda::SolveOf(chunk, log_lambda, stream);
  in.chunk.lse = lse.data<float>();
  in.chunk.y = cuda::ChunkHeadsOf(y, "y", r, cuda::kEither);
  in.g = cuda::ChunkHeadsOf(g, "g", r, cuda::kFloat32);
  cuda::ChunkAdjointSolve(cuda::ProductsOf(r, cuda::kProducts), in, stream);
}

void KrrChunkRowGradients(const KrrRightSide& right, ConstHeadTensor x,
                          ConstHeadTensor kernel_x, ConstHeadTensor y,
                          const KrrRowGradients& gradients, Stream& stream) {
  cuda::CheckRightSide(right, y);
  cuda::CheckChunkScalars(gradients.d_value_scale, "d_value_scale", y);
  cuda::CheckChunkScalars(gradients.delta, "delta", y);
  CUBIT_CHECK_SHAPE(gradients.d_log_lambda, {y.num_heads});
  cuda::RowGradients rows;
  rows.v = cuda::ChunkHeadsOf(right.v, "v", y, cuda::kEither);
  rows.x = cuda::ChunkHeadsOf(x, "x", y, cuda::kEither);
  if (!kernel_x.empty()) {
    rows.kernel_x = cuda::ChunkHeadsOf(kernel_x, "kernel_x", y, cuda::kFloat32);
  }
  rows.y = cuda::ChunkHeadsOf(y, "y", y, cuda::kEither);
  rows.d_v = cuda::ChunkHeadsOf(gradients.d_v, "d_v", y, cuda::kEither);
  rows.value_scale = right.value_scale.data<float>();
  rows.log_lambda = right.log_lambda.data<float>();
  rows.d_value_scale = gradients.d_value_scale.data<float>();
  rows.delta = gradients.delta.data<float>();
  const cuda::ChunkExtents extents = cuda::ExtentsOf(y);
  const int64_t num_rows = y.batch * y.num_heads * y.seq_len;
  if (num_rows == 0) return;
  rows.y_dot_x = static_cast<double*>(
      CudaWorkspace(num_rows * static_cast<int64_t>(sizeof(double)), stream));
  cuda::LaunchChunkRowsPass(extents, rows, CudaStream(stream));
  cuda::LaunchChunkKernel(
      cuda::LambdaGradientKernel,
      cuda::LambdaGradient{extents, rows.y_dot_x, rows.log_lambda,
                           gradients.d_log_lambda.data<float>()},
      dim3(static_cast<unsigned>(extents.num_heads)), /*shared_bytes=*/0,
      CudaStream(stream));
}

void KrrChunkScoreGradients(const KrrChunk& rows, const AdjointRows& adjoint,
                            const KrrChunk& columns, ConstHeadTensor x_columns,
                            bool diagonal, const KrrScoreGradients& gradients,
                            Stream& stream) {
  const ConstHeadTensor& r = rows.r;
  // What a row's own score gives is KrrChunkFinish's.
  cuda::ChunkArguments in =
      cuda::PairOf(rows, columns, diagonal, /*strict=*/true);
  cuda::CheckChunkScalars(adjoint.lse, "lse", r);
  cuda::CheckChunkScalars(adjoint.delta, "delta", r);
  cuda::CheckChunkScalars(gradients.row_sums, "row_sums", r);
  in.x = cuda::ChunkHeadsOf(x_columns, "x_columns", columns.r, cuda::kEither);
  in.y = cuda::ChunkHeadsOf(adjoint.y, "y", r, cuda::kEither);
  in.lse = adjoint.lse.data<float>();
  in.delta = adjoint.delta.data<float>();
  in.d_rows =
      cuda::ChunkHeadsOf(gradients.d_queries, "d_queries", r, cuda::kFloat32);
  in.d_columns =
      cuda::ChunkHeadsOf(gradients.d_keys, "d_keys", columns.r, cuda::kFloat32);
  in.row_sums = gradients.row_sums.data<double>();
  const cuda::ChunkProducts products = cuda::ProductsOf(r, cuda::kProducts);
  cuda::ChunkColumns(products, in, CudaStream(stream));
  cuda::ChunkRows(products, in, CudaStream(stream));
}

void KrrChunkFinish(const KrrChunk& chunk, ConstTensor row_sums,
                    ConstHeadTensor d_queries, ConstHeadTensor d_keys,
                    HeadTensor d_r, Tensor d_column_scale, Stream& stream) {
  const ConstHeadTensor& r = chunk.r;
  cuda::CheckKrrChunk(chunk);
  cuda::CheckChunkScalars(row_sums, "row_sums", r);
  cuda::CheckChunkScalars(d_column_scale, "d_column_scale", r);
  cuda::FinishRow rows;
  rows.r = cuda::ChunkHeadsOf(r, "r", r, cuda::kEither);
  rows.d_queries =
      cuda::ChunkHeadsOf(d_queries, "d_queries", r, cuda::kFloat32);
  rows.d_keys = cuda::ChunkHeadsOf(d_keys, "d_keys", r, cuda::kFloat32);
  rows.d_r = cuda::ChunkHeadsOf(d_r, "d_r", r, cuda::kEither);
  rows.column_scale = chunk.column_scale.data<float>();
  rows.row_sums = row_sums.data<double>();
  rows.d_column_scale = d_column_scale.data<float>();
  cuda::LaunchChunkRowsPass(cuda::ExtentsOf(r), rows, CudaStream(stream));
}

}  // namespace cubit
