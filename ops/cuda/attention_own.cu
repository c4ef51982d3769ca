// SPDX-License-Identifier: Apache-2.0

#include <cuda_bf16.h>

#include "ops/cuda/attention_engines.h"
#include "ops/cuda/attention_launch.cuh"
#include "ops/cuda/head_tiles.cuh"
#include "ops/cuda/key_ranges.cuh"
#include "ops/cuda/lanes.cuh"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
namespace {

// Lanes that share a row of the delta kernel.
constexpr int kDeltaLanes = 16;

template <typename T>
struct DeltaArguments {
  HeadRows<const T> out, d_out;
  int num_heads;
  int64_t num_rows;  // B H T
  float* delta;      // [B, H, T]
};

// Rows of d_out . out: kDeltaLanes threads each, in an order of (b, t, h) so
// that neighbouring groups read neighbouring memory.
template <typename T>
__global__ void DeltaKernel(const DeltaArguments<T> in) {
  const int64_t index =
      (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) /
      kDeltaLanes;
  const int lane = threadIdx.x % kDeltaLanes;
  const bool valid = index < in.num_rows;
  const int64_t row = valid ? index : 0;
  const int h = static_cast<int>(row % in.num_heads);
  const int t = static_cast<int>(row / in.num_heads % in.out.seq_len);
  const int b = static_cast<int>(row / in.num_heads / in.out.seq_len);
  const T* out = in.out.Head(b, h) + t * in.out.seq_stride;
  const T* d_out = in.d_out.Head(b, h) + t * in.d_out.seq_stride;
  float sum = 0.0f;
  constexpr int kVector = 16 / sizeof(T);
  if (in.out.vectors && in.d_out.vectors) {
    for (int c = lane * kVector; c < in.out.head_dim;
         c += kDeltaLanes * kVector) {
      T x[kVector];
      T y[kVector];
      *reinterpret_cast<uint4*>(x) = *reinterpret_cast<const uint4*>(out + c);
      *reinterpret_cast<uint4*>(y) = *reinterpret_cast<const uint4*>(d_out + c);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        sum += ToFloat(x[i]) * ToFloat(y[i]);
      }
    }
  } else {
    for (int c = lane; c < in.out.head_dim; c += kDeltaLanes) {
      sum += ToFloat(out[c]) * ToFloat(d_out[c]);
    }
  }
  sum = LaneSum<kDeltaLanes>(sum);
  if (valid && lane == 0) {
    in.delta[(static_cast<int64_t>(b) * in.num_heads + h) * in.out.seq_len +
             t] = sum;
  }
}

template <typename T>
void ComputeDelta(const ConstHeadTensor& out, const ConstHeadTensor& d_out,
                  float* delta, cudaStream_t stream) {
  DeltaArguments<T> arguments;
  arguments.out = RowsOf<const T>(out);
  arguments.d_out = RowsOf<const T>(d_out);
  arguments.num_heads = static_cast<int>(out.num_heads);
  arguments.num_rows = out.batch * out.num_heads * out.seq_len;
  arguments.delta = delta;
  constexpr int kThreads = 256;
  constexpr int kRowsPerBlock = kThreads / kDeltaLanes;
  const auto blocks = static_cast<unsigned>(
      (arguments.num_rows + kRowsPerBlock - 1) / kRowsPerBlock);
  DeltaKernel<T><<<blocks, kThreads, 0, stream>>>(arguments);
  CUBIT_CUDA_CHECK_LAUNCH();
}

template <typename T>
void OwnForward(const AttentionForwardCall& in, Stream& stream) {
  void* scratch = CudaWorkspace(KeyRangesBytes(in.mask), stream);
  AttentionForwardArguments<T> arguments;
  arguments.q = RowsOf<const T>(in.q);
  arguments.k = RowsOf<const T>(in.k);
  arguments.v = RowsOf<const T>(in.v);
  arguments.out = RowsOf<T>(in.out);
  arguments.lse = in.lse.data<float>();
  arguments.scale = in.scale;
  arguments.num_heads = static_cast<int>(in.q.num_heads);
  arguments.keys =
      MakeKeyRanges(in.mask, in.q.seq_len, in.k.seq_len, scratch, stream);
  LaunchAttentionForward(arguments, static_cast<int>(in.q.batch),
                         CudaStream(stream));
}

template <typename T>
void OwnBackward(const AttentionBackwardCall& in, Stream& stream) {
  ComputeDelta<T>(in.out, in.d_out, in.delta.data<float>(), CudaStream(stream));
  void* scratch = CudaWorkspace(KeyRangesBytes(in.mask), stream);
  AttentionBackwardArguments<T> arguments;
  arguments.q = RowsOf<const T>(in.q);
  arguments.k = RowsOf<const T>(in.k);
  arguments.v = RowsOf<const T>(in.v);
  arguments.d_out = RowsOf<const T>(in.d_out);
  arguments.d_q = RowsOf<T>(in.d_q);
  arguments.d_k = RowsOf<T>(in.d_k);
  arguments.d_v = RowsOf<T>(in.d_v);
  arguments.lse = in.lse.data<float>();
  arguments.delta = in.delta.data<float>();
  arguments.scale = in.scale;
  arguments.num_heads = static_cast<int>(in.q.num_heads);
  arguments.add_d_q = in.accumulate.d_q;
  arguments.add_d_k = in.accumulate.d_k;
  arguments.add_d_v = in.accumulate.d_v;
  arguments.keys =
      MakeKeyRanges(in.mask, in.q.seq_len, in.k.seq_len, scratch, stream);
  LaunchAttentionBackward(arguments, static_cast<int>(in.q.batch),
                          CudaStream(stream));
}

}  // namespace

void OwnAttentionForward(const AttentionForwardCall& call, Stream& stream) {
  if (call.q.dtype == DType::kFloat32) {
    OwnForward<float>(call, stream);
  } else {
    OwnForward<__nv_bfloat16>(call, stream);
  }
}

void OwnAttentionBackward(const AttentionBackwardCall& call, Stream& stream) {
  if (call.q.dtype == DType::kFloat32) {
    OwnBackward<float>(call, stream);
  } else {
    OwnBackward<__nv_bfloat16>(call, stream);
  }
}

}  // namespace cuda
}  // namespace cubit
