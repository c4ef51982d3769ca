// SPDX-License-Identifier: Apache-2.0
//
// One row against a cache is a pass over memory. The keys of a head are cut
// into parts, one block of threads each, so that a few heads fill the GPU; a
// part leaves its maximum, its sum of weights and its weighted sum of values
// relative to that maximum, and a second kernel joins the parts in order.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/cuda/head_views.cuh"
#include "ops/cuda/memory_pass.cuh"
#include "ops/decode.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace {

using cuda::HeadRows;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kMaxDim = 128;
constexpr int kMaxPerLane = kMaxDim / 32;
constexpr int kMaxParts = 64;
// Keys that a warp has under way at once.
constexpr int kKeysAtOnce = 4;
// A part is at least as long as its block can take in a few rounds.
constexpr int kMinKeysPerPart = kWarps * kKeysAtOnce * 4;

// A view with K = 1 of either dtype.
struct Scalars {
  const void* data = nullptr;
  bool is_bfloat16 = false;
  int64_t batch_stride = 0, seq_stride = 0, head_stride = 0;

  Scalars() = default;
  explicit Scalars(const ConstHeadTensor& x)
      : data(x.data),
        is_bfloat16(x.dtype == DType::kBFloat16),
        batch_stride(x.batch_stride),
        seq_stride(x.seq_stride),
        head_stride(x.head_stride) {
    CUBIT_CHECK_EQ(x.head_dim, 1);
  }
  __device__ float At(int b, int t, int h) const {
    const int64_t i = b * batch_stride + t * seq_stride + h * head_stride;
    return is_bfloat16
               ? cuda::ToFloat(static_cast<const __nv_bfloat16*>(data)[i])
               : static_cast<const float*>(data)[i];
  }
};

// scores_j = scale_j query . keys_j, scale_j = scale * column_scale_j.
template <typename T>
struct PartArguments {
  HeadRows<const T> query;  // row `query_position`
  HeadRows<const T> keys;
  HeadRows<const T> values;
  Scalars column_scale;  // without data: 1
  float scale;
  int query_position;
  int num_keys;
  int num_heads;
  int keys_per_part;
  float* parts;  // [B H, parts, head_dim + 2]: weighted sum, maximum, sum
};

// Sum and weighted values of weights exp(score - maximum).
struct Running {
  float maximum = -INFINITY;
  float sum = 0.0f;
  float values[kMaxPerLane] = {};

  // Brings what was summed to the scale of `largest`.
  __device__ void Rescale(float largest) {
    // Nothing yet: 0 remains 0.
    const float factor = maximum == largest ? 1.0f : expf(maximum - largest);
    maximum = largest;
    sum *= factor;
#pragma unroll
    for (int i = 0; i < kMaxPerLane; ++i) values[i] *= factor;
  }
};

// The elements of a row that a lane has: per_lane adjacent ones.
template <typename T>
__device__ __forceinline__ void LoadLane(const T* row, int per_lane,
                                         int head_dim,
                                         float (&x)[kMaxPerLane]) {
  const int first = threadIdx.x % 32 * per_lane;
#pragma unroll
  for (int i = 0; i < kMaxPerLane; ++i) {
    x[i] = i < per_lane && first + i < head_dim ? cuda::ToFloat(row[first + i])
                                                : 0.0f;
  }
}

template <typename T>
__device__ void AddKeys(const PartArguments<T>& in, int b, int h, int first,
                        int count, int per_lane,
                        const float (&query)[kMaxPerLane], Running* running) {
  const int head_dim = in.keys.head_dim;
  float scores[kKeysAtOnce];
  float keys[kKeysAtOnce][kMaxPerLane];
  float values[kKeysAtOnce][kMaxPerLane];
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const int j = first + min(i, count - 1);
    LoadLane(in.keys.Row(b, j, h), per_lane, head_dim, keys[i]);
    LoadLane(in.values.Row(b, j, h), per_lane, head_dim, values[i]);
  }
  float largest = running->maximum;
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    float product = 0.0f;
#pragma unroll
    for (int c = 0; c < kMaxPerLane; ++c) product += query[c] * keys[i][c];
    const int j = first + min(i, count - 1);
    const float scale =
        in.column_scale.data == nullptr ? 1.0f : in.column_scale.At(b, j, h);
    scores[i] = cuda::WarpSum(product) * in.scale * scale;
    largest = fmaxf(largest, scores[i]);
  }
  running->Rescale(largest);
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    if (i >= count) break;
    const float weight = expf(scores[i] - largest);
    running->sum += weight;
#pragma unroll
    for (int c = 0; c < kMaxPerLane; ++c) {
      running->values[c] += weight * values[i][c];
    }
  }
}

// Grid: (B H, parts).
template <typename T>
__global__ void PartKernel(const PartArguments<T> in) {
  __shared__ float maxima[kWarps];
  __shared__ float sums[kWarps];
  __shared__ float weighted[kWarps][kMaxDim];
  const int b = blockIdx.x / in.num_heads;
  const int h = blockIdx.x % in.num_heads;
  const int warp = threadIdx.x / 32;
  const int head_dim = in.keys.head_dim;
  const int per_lane = (head_dim + 31) / 32;
  float query[kMaxPerLane];
  LoadLane(in.query.Row(b, in.query_position, h), per_lane, head_dim, query);

  Running running;
  const int end =
      min(in.num_keys, static_cast<int>(blockIdx.y + 1) * in.keys_per_part);
  for (int j = blockIdx.y * in.keys_per_part + warp * kKeysAtOnce; j < end;
       j += kWarps * kKeysAtOnce) {
    AddKeys(in, b, h, j, min(kKeysAtOnce, end - j), per_lane, query, &running);
  }

  maxima[warp] = running.maximum;
  __syncthreads();
  float largest = maxima[0];
  for (int i = 1; i < kWarps; ++i) largest = fmaxf(largest, maxima[i]);
  running.Rescale(largest);
  sums[warp] = running.sum;
#pragma unroll
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int c = threadIdx.x % 32 * per_lane + i;
    if (i < per_lane && c < head_dim) weighted[warp][c] = running.values[i];
  }
  __syncthreads();
  float* const part =
      in.parts + (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) *
                     (head_dim + 2);
  if (threadIdx.x < head_dim) {
    float total = 0.0f;
    for (int i = 0; i < kWarps; ++i) total += weighted[i][threadIdx.x];
    part[threadIdx.x] = total;
  }
  if (threadIdx.x == 0) {
    float total = 0.0f;
    for (int i = 0; i < kWarps; ++i) total += sums[i];
    part[head_dim] = largest;
    part[head_dim + 1] = total;
  }
}

// All parts of one head: of element `threadIdx.x`, the weighted sum; the
// maximum and the sum of weights, in every thread.
struct Joined {
  float maximum = -INFINITY;
  float sum = 0.0f;
  float value = 0.0f;

  __device__ Joined(const float* parts, int num_parts, int head_dim) {
    const int64_t stride = head_dim + 2;
    const float* head = parts + blockIdx.x * num_parts * stride;
    for (int i = 0; i < num_parts; ++i) {
      maximum = fmaxf(maximum, head[i * stride + head_dim]);
    }
    for (int i = 0; i < num_parts; ++i) {
      const float* part = head + i * stride;
      // A part without a key has -inf and zeros.
      const float factor =
          part[head_dim] == maximum ? 1.0f : expf(part[head_dim] - maximum);
      sum += factor * part[head_dim + 1];
      if (threadIdx.x < head_dim) value += factor * part[threadIdx.x];
    }
  }
};

// What the second kernels are given, beside their own.
template <typename T>
struct JoinArguments {
  const float* parts;
  int num_parts;
  int num_heads;
  int position;
  HeadRows<const T> value;  // [B, 1, H, K]
  HeadRows<T> out;          // row `out_position`
  int out_position;
};

template <typename T>
__global__ void JoinAttentionKernel(const JoinArguments<T> in) {
  const int b = blockIdx.x / in.num_heads;
  const int h = blockIdx.x % in.num_heads;
  const Joined joined(in.parts, in.num_parts, in.out.head_dim);
  if (threadIdx.x >= in.out.head_dim) return;
  in.out.Row(b, in.out_position, h)[threadIdx.x] =
      cuda::FromFloat<T>(joined.value / joined.sum);
}

// (P + lambda I) x = s v, times the row's sum. The parts hold the keys before
// `position`.
template <typename T>
__global__ void JoinKrrKernel(const JoinArguments<T> in, HeadRows<const T> r,
                              Scalars column_scale, Scalars value_scale,
                              const float* log_lambda) {
  __shared__ float shared[kMaxDim / 32];
  const int b = blockIdx.x / in.num_heads;
  const int h = blockIdx.x % in.num_heads;
  const int c = threadIdx.x;
  const bool inside = c < in.out.head_dim;
  const float own = inside ? cuda::ToFloat(r.Row(b, in.position, h)[c]) : 0.0f;
  const float score =
      cuda::BlockSum(own * own, shared) * column_scale.At(b, in.position, h);
  const Joined joined(in.parts, in.num_parts, in.out.head_dim);
  const float maximum = fmaxf(joined.maximum, score);
  const float diagonal = expf(score - maximum);
  const float factor = expf(joined.maximum - maximum);
  const float sum = joined.sum * factor + diagonal;
  if (!inside) return;
  const float value = cuda::ToFloat(in.value.Row(b, 0, h)[c]);
  const float right = sum * value_scale.At(b, 0, h) * value;
  in.out.Row(b, in.out_position, h)[c] = cuda::FromFloat<T>(
      (right - joined.value * factor) / (diagonal + expf(log_lambda[h]) * sum));
}

// x = v - beta P x; nothing is subtracted from the first row.
template <typename T>
__global__ void JoinDeltaKernel(const JoinArguments<T> in, Scalars beta) {
  const int b = blockIdx.x / in.num_heads;
  const int h = blockIdx.x % in.num_heads;
  const Joined joined(in.parts, in.num_parts, in.out.head_dim);
  if (threadIdx.x >= in.out.head_dim) return;
  const float value = cuda::ToFloat(in.value.Row(b, 0, h)[threadIdx.x]);
  const float seen =
      in.position == 0 ? 0.0f : beta.At(b, 0, h) * joined.value / joined.sum;
  in.out.Row(b, in.out_position, h)[threadIdx.x] =
      cuda::FromFloat<T>(value - seen);
}

int NumParts(int64_t num_pairs, int64_t num_keys) {
  // Two blocks for every multiprocessor.
  const int64_t wanted = cuda::CeilDivide(2 * NumMultiprocessors(),
                                          std::max<int64_t>(1, num_pairs));
  const int64_t most = cuda::CeilDivide(num_keys, kMinKeysPerPart);
  return static_cast<int>(
      std::max<int64_t>(1, std::min<int64_t>({wanted, most, kMaxParts})));
}

void CheckView(const ConstHeadTensor& x, const ConstHeadTensor& like,
               const char* name) {
  CUBIT_CHECK(x.batch == like.batch && x.num_heads == like.num_heads &&
              x.head_dim == like.head_dim && x.dtype == like.dtype)
      << name << ": [" << x.batch << ", T, " << x.num_heads << ", "
      << x.head_dim << "] " << Name(x.dtype) << " beside [" << like.batch
      << ", T, " << like.num_heads << ", " << like.head_dim << "] "
      << Name(like.dtype);
}

// A row against a cache, on the host.
struct Cache {
  ConstHeadTensor query;
  int64_t query_position;
  ConstHeadTensor keys, values;
  Scalars column_scale;
  float scale;
  int64_t num_keys;
};

// Runs the first kernel; the second's arguments.
template <typename T>
JoinArguments<T> RunParts(const Cache& cache, const ConstHeadTensor& value,
                          const HeadTensor& out, int64_t position,
                          int64_t out_position, Stream& stream) {
  const ConstHeadTensor& keys = cache.keys;
  const int64_t num_pairs = keys.batch * keys.num_heads;
  const int num_parts = NumParts(num_pairs, cache.num_keys);
  PartArguments<T> parts;
  parts.query = cuda::RowsOf<const T>(cache.query);
  parts.keys = cuda::RowsOf<const T>(keys);
  parts.values = cuda::RowsOf<const T>(cache.values);
  parts.column_scale = cache.column_scale;
  parts.scale = cache.scale;
  parts.query_position = static_cast<int>(cache.query_position);
  parts.num_keys = static_cast<int>(cache.num_keys);
  parts.num_heads = static_cast<int>(keys.num_heads);
  parts.keys_per_part = cuda::CeilDivide(cache.num_keys, num_parts);
  parts.parts = static_cast<float*>(CudaWorkspace(
      num_pairs * num_parts * (keys.head_dim + 2) * SizeOf(DType::kFloat32),
      stream));
  const dim3 grid(static_cast<unsigned>(num_pairs),
                  static_cast<unsigned>(num_parts));
  PartKernel<T><<<grid, kThreads, 0, CudaStream(stream)>>>(parts);
  CUBIT_CUDA_CHECK_LAUNCH();

  JoinArguments<T> join;
  join.parts = parts.parts;
  join.num_parts = num_parts;
  join.num_heads = parts.num_heads;
  join.position = static_cast<int>(position);
  join.value = cuda::RowsOf<const T>(value);
  join.out = cuda::RowsOf<T>(out);
  join.out_position = static_cast<int>(out_position);
  return join;
}

// Grid and block of the second kernels.
unsigned NumPairs(const ConstHeadTensor& x) {
  return static_cast<unsigned>(x.batch * x.num_heads);
}

void CheckCache(const ConstHeadTensor& keys, int64_t position) {
  CUBIT_CHECK(position >= 0 && position < keys.seq_len)
      << "position " << position << " of a cache of " << keys.seq_len;
  CUBIT_CHECK_LE(keys.head_dim, kMaxDim);
}

}  // namespace

void AttentionDecode(ConstHeadTensor q, ConstHeadTensor k, ConstHeadTensor v,
                     float scale, int64_t position, HeadTensor out,
                     Stream& stream) {
  CheckCache(k, position);
  CheckView(q, k, "q"), CheckView(v, k, "v"), CheckView(out, k, "out");
  if (NumPairs(k) == 0) return;
  cuda::Dispatch(k.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto join = RunParts<T>({q, 0, k, v, Scalars(), scale, position + 1},
                                  v, out, position, 0, stream);
    JoinAttentionKernel<T>
        <<<NumPairs(k), kMaxDim, 0, CudaStream(stream)>>>(join);
  });
  CUBIT_CUDA_CHECK_LAUNCH();
}

void KrrDecode(ConstHeadTensor r, ConstHeadTensor column_scale,
               ConstHeadTensor v, ConstHeadTensor value_scale,
               ConstTensor log_lambda, int64_t position, HeadTensor x,
               Stream& stream) {
  CheckCache(r, position);
  CheckView(v, r, "v"), CheckView(x, r, "x");
  CUBIT_CHECK_SHAPE(log_lambda, {r.num_heads});
  if (NumPairs(r) == 0) return;
  cuda::Dispatch(r.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto join =
        RunParts<T>({r, position, r, x, Scalars(column_scale), 1.0f, position},
                    v, x, position, position, stream);
    JoinKrrKernel<T><<<NumPairs(r), kMaxDim, 0, CudaStream(stream)>>>(
        join, cuda::RowsOf<const T>(r), Scalars(column_scale),
        Scalars(value_scale), log_lambda.data<float>());
  });
  CUBIT_CUDA_CHECK_LAUNCH();
}

void DeltaDecode(ConstHeadTensor w, ConstHeadTensor k, ConstHeadTensor v,
                 ConstHeadTensor beta, float scale, int64_t position,
                 HeadTensor x, Stream& stream) {
  CheckCache(k, position);
  CheckView(w, k, "w"), CheckView(v, k, "v"), CheckView(x, k, "x");
  if (NumPairs(k) == 0) return;
  cuda::Dispatch(k.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto join = RunParts<T>({w, 0, k, x, Scalars(), scale, position}, v,
                                  x, position, position, stream);
    JoinDeltaKernel<T>
        <<<NumPairs(k), kMaxDim, 0, CudaStream(stream)>>>(join, Scalars(beta));
  });
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace cubit
