// SPDX-License-Identifier: Apache-2.0
//
// Passes over per-head rows in which a few neighbouring lanes of a warp hold a
// row: the factors around the KRR solve and its health.

#ifndef CUBIT_OPS_CUDA_ROW_LANES_CUH_
#define CUBIT_OPS_CUDA_ROW_LANES_CUH_

#include <cstdint>

#include <cuda_bf16.h>

#include "ops/cuda/memory_pass.cuh"
#include "runtime/check.h"
#include "runtime/tensor.h"

namespace cubit {
namespace cuda {

// Of a block of these passes.
constexpr int kRowThreads = 256;

// A [B, T, H, K] view of either element type.
struct RowView {
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

inline RowView ViewOf(const ConstHeadTensor& x) {
  return {x.data, x.batch_stride, x.seq_stride, x.head_stride};
}

// The rows of a sequence, heads fastest, so that warps read neighbouring ones.
// Numbers of 32 bits: a division of 64 bits costs as much as the pass.
struct SequenceRows {
  unsigned num_heads;
  unsigned seq_len;
  int head_dim;

  __host__ __device__ unsigned count() const { return num_heads * seq_len; }
};

inline SequenceRows RowsOfSequence(const ConstHeadTensor& r) {
  return {static_cast<unsigned>(r.num_heads), static_cast<unsigned>(r.seq_len),
          static_cast<int>(r.head_dim)};
}

struct SequenceRow {
  int b, t, h;
  int64_t scalar;  // its place in [B, H, T]
};

__device__ __forceinline__ SequenceRow RowAt(const SequenceRows& rows, int b,
                                             int t, int h) {
  return {b, t, h,
          (static_cast<int64_t>(b) * rows.num_heads + h) * rows.seq_len + t};
}
// Row n of sequence b.
__device__ __forceinline__ SequenceRow NthRow(const SequenceRows& rows, int b,
                                              unsigned n) {
  return RowAt(rows, b, static_cast<int>(n / rows.num_heads),
               static_cast<int>(n % rows.num_heads));
}

// kLanes neighbouring threads of a warp hold one row, kWidth elements at a
// time.
template <typename ElementType, int kLanesOfRow, int kElementsAtOnce>
struct RowLanes {
  using Element = ElementType;
  static constexpr int kLanes = kLanesOfRow;
  static constexpr int kWidth = kElementsAtOnce;
  static constexpr int kColumns = kLanes * kWidth;  // of all lanes at once
  static constexpr int kRowsOfBlock = kRowThreads / kLanes;

  __device__ static int Row() { return static_cast<int>(threadIdx.x) / kLanes; }
  __device__ static int Lane() {
    return static_cast<int>(threadIdx.x) % kLanes;
  }
  // use(c): of the columns [c, c + kWidth) of this thread.
  template <typename Use>
  __device__ static void ForColumns(int dim, const Use& use) {
    for (int c = Lane() * kWidth; c < dim; c += kColumns) use(c);
  }
  // Over the row, the same in all its threads. By whole warps.
  __device__ static float Sum(float x) { return LaneSum<kLanes>(x); }
};

// Combines each of `kCount` numbers over a thread block, in a fixed order;
// thread 0 gets the results.
template <typename T, int kCount, typename Combine>
__device__ void ReduceOverBlock(T (&x)[kCount], const Combine& combine) {
  constexpr int kWarps = kRowThreads / kWarpSize;
  __shared__ T of_warp[kCount][kWarps];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      x[i] = combine(x[i], __shfl_xor_sync(0xffffffffu, x[i], offset));
    }
    if (threadIdx.x % kWarpSize == 0)
      of_warp[i][threadIdx.x / kWarpSize] = x[i];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 0; i < kCount; ++i) {
    for (int w = 1; w < kWarps; ++w) x[i] = combine(x[i], of_warp[i][w]);
  }
}

// Calls use(RowLanes) with what fits rows of `dim` elements; `aligned`: they
// are whole 16-byte vectors.
template <typename Element, typename Use>
void WithLanesOf(int64_t dim, bool aligned, const Use& use) {
  constexpr int kWidth = kVectorWidth<Element>;
  if (!aligned) return use(RowLanes<Element, 32, 1>());
  const int64_t vectors = dim / kWidth;
  if (vectors <= 4) return use(RowLanes<Element, 4, kWidth>());
  if (vectors <= 8) return use(RowLanes<Element, 8, kWidth>());
  if (vectors <= 16) return use(RowLanes<Element, 16, kWidth>());
  use(RowLanes<Element, 32, kWidth>());
}
template <typename Use>
void WithLanes(DType dtype, int64_t dim, bool aligned, const Use& use) {
  if (dtype == DType::kBFloat16) {
    WithLanesOf<__nv_bfloat16>(dim, aligned, use);
  } else {
    WithLanesOf<float>(dim, aligned, use);
  }
}

// CHECKs `x` against the dtype and the extents of `like` but for its head dim.
inline void CheckView(const ConstHeadTensor& x, const char* name,
                      const ConstHeadTensor& like, int64_t head_dim) {
  CUBIT_CHECK(x.dtype == like.dtype)
      << name << ": dtype " << Name(x.dtype) << ", wanted " << Name(like.dtype);
  CUBIT_CHECK(x.batch == like.batch && x.seq_len == like.seq_len &&
              x.num_heads == like.num_heads && x.head_dim == head_dim)
      << name << ": wanted " << like.batch << ", " << like.seq_len << ", "
      << like.num_heads << ", " << head_dim;
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ROW_LANES_CUH_
