// SPDX-License-Identifier: Apache-2.0
//
// Masks of attention.h as ranges: documents are contiguous, so what a query
// sees is one range of keys, and the queries that see a key are one range.

#ifndef CUBIT_OPS_CUDA_KEY_RANGES_CUH_
#define CUBIT_OPS_CUDA_KEY_RANGES_CUH_

#include <cstdint>

#include "ops/attention.h"
#include "runtime/device.h"

namespace cubit {
namespace cuda {

struct KeyRanges {
  // [B, Tk]: first key and one past the last of the key's document; null where
  // all keys are one document.
  const int2* documents = nullptr;
  int num_keys = 0;
  int offset = 0;  // of the first query among the keys: Tk - Tq
  bool causal = true;

  // Keys [x, y) that query number `query` sees.
  __device__ __forceinline__ int2 OfQuery(int b, int query) const {
    const int position = query + offset;
    int2 range = Document(b, position);
    if (causal) range.y = min(range.y, position + 1);
    return range;
  }
  // Queries [x, y) that see `key`; only where Tq == Tk.
  __device__ __forceinline__ int2 QueriesOf(int b, int key) const {
    int2 range = Document(b, key);
    if (causal) range.x = max(range.x, key);
    return range;
  }

 private:
  __device__ __forceinline__ int2 Document(int b, int position) const {
    return documents == nullptr
               ? make_int2(0, num_keys)
               : documents[b * static_cast<int64_t>(num_keys) + position];
  }
};

// Bytes that MakeKeyRanges needs: 0 without documents.
int64_t KeyRangesBytes(const AttentionMask& mask);

// The ranges of `mask` for Tq queries and Tk keys; documents are written to
// `scratch` (KeyRangesBytes) on the stream.
KeyRanges MakeKeyRanges(const AttentionMask& mask, int64_t num_queries,
                        int64_t num_keys, void* scratch, Stream& stream);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_KEY_RANGES_CUH_
