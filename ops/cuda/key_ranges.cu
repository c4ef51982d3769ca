// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/chunk_mask.h"
#include "ops/cuda/key_ranges.cuh"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
namespace {

__global__ void DocumentRangesKernel(const int32_t* segment_ids, int num_keys,
                                     int2* documents) {
  const int key = blockIdx.x * blockDim.x + threadIdx.x;
  if (key >= num_keys) return;
  const int32_t* ids =
      segment_ids + blockIdx.y * static_cast<int64_t>(num_keys);
  documents[blockIdx.y * static_cast<int64_t>(num_keys) + key] =
      make_int2(CountSegments(ids, num_keys, ids[key], false),
                CountSegments(ids, num_keys, ids[key], true));
}

}  // namespace

int64_t KeyRangesBytes(const AttentionMask& mask) {
  if (mask.segment_ids.empty()) return 0;
  return mask.segment_ids.num_elements() * static_cast<int64_t>(sizeof(int2));
}

KeyRanges MakeKeyRanges(const AttentionMask& mask, int64_t num_queries,
                        int64_t num_keys, void* scratch, Stream& stream) {
  KeyRanges ranges;
  ranges.num_keys = static_cast<int>(num_keys);
  ranges.offset = static_cast<int>(num_keys - num_queries);
  ranges.causal = mask.causal;
  if (mask.segment_ids.empty()) return ranges;
  CUBIT_CHECK_EQ(mask.segment_ids.shape().rank(), 2);
  CUBIT_CHECK_EQ(mask.segment_ids.dim(1), num_keys);
  constexpr int kThreads = 128;
  const dim3 grid(static_cast<unsigned>((num_keys + kThreads - 1) / kThreads),
                  static_cast<unsigned>(mask.segment_ids.dim(0)));
  DocumentRangesKernel<<<grid, kThreads, 0, CudaStream(stream)>>>(
      mask.segment_ids.data<int32_t>(), ranges.num_keys,
      static_cast<int2*>(scratch));
  CUBIT_CUDA_CHECK_LAUNCH();
  ranges.documents = static_cast<const int2*>(scratch);
  return ranges;
}

}  // namespace cuda
}  // namespace cubit
