// SPDX-License-Identifier: Apache-2.0

#include "ops/chunked_attention.h"
#include "ops/cuda/attention_engines.h"
#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_rows.cuh"
#include "ops/cuda/chunk_views.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
namespace {

constexpr auto kFloat32 = ChunkDTypes::kFloat32;
constexpr auto kEither = ChunkDTypes::kFloat32OrBFloat16;
// Products of fp32 tensors, as in attention.h.
constexpr auto kProducts = ChunkProducts::kTFloat32x3;

struct BeginRow {
  float* row_max;
  double* row_sum;
  ChunkHeads weighted;

  __device__ void Start(const ChunkExtents&, int) {}
  __device__ void operator()(const ChunkRowPlace& place, int head_dim) const {
    const int lane = threadIdx.x % kWarpSize;
    if (lane == 0) {
      row_max[place.scalar] = -INFINITY;
      row_sum[place.scalar] = 0;
    }
    for (int c = lane; c < head_dim; c += kWarpSize) {
      StoreChunkElement(0.0f, weighted, place.In(weighted) + c);
    }
  }
};

struct FinishRow {
  const float* row_max;
  const double* row_sum;
  ChunkHeads weighted, out;
  float* lse;

  __device__ void Start(const ChunkExtents&, int) {}
  __device__ void operator()(const ChunkRowPlace& place, int head_dim) const {
    const int lane = threadIdx.x % kWarpSize;
    const double sum = row_sum[place.scalar];
    const float inverse = sum == 0 ? 0.0f : static_cast<float>(1.0 / sum);
    for (int c = lane; c < head_dim; c += kWarpSize) {
      const float x = ChunkElement(weighted, place.In(weighted) + c);
      StoreChunkElement(inverse * x, out, place.In(out) + c);
    }
    if (lane != 0) return;
    const double maximum = static_cast<double>(row_max[place.scalar]);
    lse[place.scalar] =
        sum == 0 ? -INFINITY : static_cast<float>(maximum + log(sum));
  }
};

struct DeltaOfRow {
  ChunkHeads out, d_out;
  float* delta;

  __device__ void Start(const ChunkExtents&, int) {}
  __device__ void operator()(const ChunkRowPlace& place, int head_dim) const {
    const float dot = RowDot<float>(out, d_out, place, head_dim);
    if (threadIdx.x % kWarpSize == 0) delta[place.scalar] = dot;
  }
};

}  // namespace
}  // namespace cuda

void BeginRowSums(const RowSums& sums, Stream& stream) {
  cuda::ChunkArguments in;
  cuda::SetChunkSums(sums, sums.weighted, &in);
  cuda::LaunchChunkRowsPass(cuda::ExtentsOf(sums.weighted),
                            cuda::BeginRow{in.row_max, in.row_sum, in.weighted},
                            CudaStream(stream));
}

void AttentionChunkForward(ConstHeadTensor q, ConstHeadTensor k,
                           ConstHeadTensor v, float scale,
                           const ChunkMask& mask, const RowSums& sums,
                           Stream& stream) {
  cuda::ChunkArguments in =
      cuda::PairOfChunks(q, "q", k, "k", mask, /*strict=*/false, scale);
  in.x = cuda::ChunkHeadsOf(v, "v", k, cuda::kEither);
  cuda::SetChunkSums(sums, q, &in);
  if (cuda::CudnnChunkForward(q, k, v, scale, mask, sums, stream)) return;
  cuda::ChunkForward(cuda::ProductsOf(q, cuda::kProducts), in,
                     CudaStream(stream));
}

void FinishRowSums(const RowSums& sums, HeadTensor out, Tensor lse,
                   Stream& stream) {
  cuda::ChunkArguments in;
  cuda::SetChunkSums(sums, out, &in);
  cuda::CheckChunkScalars(lse, "lse", out);
  cuda::LaunchChunkRowsPass(
      cuda::ExtentsOf(out),
      cuda::FinishRow{in.row_max, in.row_sum, in.weighted,
                      cuda::ChunkHeadsOf(out, "out", out, cuda::kEither),
                      lse.data<float>()},
      CudaStream(stream));
}

void AttentionChunkDelta(ConstHeadTensor out, ConstHeadTensor d_out,
                         Tensor delta, Stream& stream) {
  cuda::CheckChunkScalars(delta, "delta", out);
  cuda::LaunchChunkRowsPass(
      cuda::ExtentsOf(out),
      cuda::DeltaOfRow{cuda::ChunkHeadsOf(out, "out", out, cuda::kEither),
                       cuda::ChunkHeadsOf(d_out, "d_out", out, cuda::kEither),
                       delta.data<float>()},
      CudaStream(stream));
}

void AttentionChunkBackward(const AttentionChunkRows& rows, ConstHeadTensor k,
                            ConstHeadTensor v, float scale,
                            const ChunkMask& mask,
                            const AttentionChunkGradients& gradients,
                            Stream& stream) {
  const ConstHeadTensor& q = rows.q;
  cuda::ChunkArguments in =
      cuda::PairOfChunks(q, "q", k, "k", mask, /*strict=*/false, scale);
  in.x = cuda::ChunkHeadsOf(v, "v", k, cuda::kEither);
  in.y = cuda::ChunkHeadsOf(rows.d_out, "d_out", q, cuda::kEither);
  cuda::CheckChunkScalars(rows.lse, "lse", q);
  cuda::CheckChunkScalars(rows.delta, "delta", q);
  in.lse = rows.lse.data<float>();
  in.delta = rows.delta.data<float>();
  in.column_factor = scale;
  in.d_rows = cuda::ChunkHeadsOf(gradients.d_q, "d_q", q, cuda::kFloat32);
  in.d_columns = cuda::ChunkHeadsOf(gradients.d_k, "d_k", k, cuda::kFloat32);
  in.d_values = cuda::ChunkHeadsOf(gradients.d_v, "d_v", k, cuda::kFloat32);
  if (cuda::CudnnChunkBackward(rows, k, v, scale, mask, gradients, stream)) {
    return;
  }
  const cuda::ChunkProducts products = cuda::ProductsOf(q, cuda::kProducts);
  cuda::ChunkColumns(products, in, CudaStream(stream));
  cuda::ChunkRows(products, in, CudaStream(stream));
}

}  // namespace cubit
