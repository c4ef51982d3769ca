// SPDX-License-Identifier: Apache-2.0
//
// [B, T, H, K] views as kernel arguments.

#ifndef CUBIT_OPS_CUDA_HEAD_VIEWS_CUH_
#define CUBIT_OPS_CUDA_HEAD_VIEWS_CUH_

#include <cstdint>

#include "runtime/tensor.h"

namespace cubit {
namespace cuda {

template <typename T>
struct HeadRows {
  T* data;
  int64_t batch_stride, seq_stride, head_stride;
  int seq_len;
  int head_dim;
  // Every row starts at a multiple of 16 bytes and its length is one, so that
  // it can be moved in vectors of 16 bytes.
  bool vectors;
  // The same for two elements.
  bool pairs;

  __device__ __forceinline__ T* Head(int b, int h) const {
    return data + b * batch_stride + h * head_stride;
  }
  __device__ __forceinline__ T* Row(int b, int t, int h) const {
    return Head(b, h) + t * seq_stride;
  }
};

// Whether every row of `x` starts at a multiple of `bytes` and is one long.
template <typename View>
bool HasRowsOf(const View& x, int64_t bytes) {
  const int64_t size = SizeOf(x.dtype);
  return reinterpret_cast<uintptr_t>(x.data) % bytes == 0 &&
         x.batch_stride * size % bytes == 0 &&
         x.seq_stride * size % bytes == 0 &&
         x.head_stride * size % bytes == 0 && x.head_dim * size % bytes == 0;
}

template <typename T, typename View>
HeadRows<T> RowsOf(const View& x) {
  HeadRows<T> rows;
  rows.data = static_cast<T*>(x.data);
  rows.batch_stride = x.batch_stride;
  rows.seq_stride = x.seq_stride;
  rows.head_stride = x.head_stride;
  rows.seq_len = static_cast<int>(x.seq_len);
  rows.head_dim = static_cast<int>(x.head_dim);
  rows.vectors = HasRowsOf(x, 16);
  rows.pairs = HasRowsOf(x, 2 * SizeOf(x.dtype));
  return rows;
}

// CHECKs that two views have the same extents.
inline void CheckSameExtents(const ConstHeadTensor& a,
                             const ConstHeadTensor& b) {
  CUBIT_CHECK(a.batch == b.batch && a.seq_len == b.seq_len &&
              a.num_heads == b.num_heads && a.head_dim == b.head_dim)
      << "[" << a.batch << ", " << a.seq_len << ", " << a.num_heads << ", "
      << a.head_dim << "] and [" << b.batch << ", " << b.seq_len << ", "
      << b.num_heads << ", " << b.head_dim << "]";
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_HEAD_VIEWS_CUH_
