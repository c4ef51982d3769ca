// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "ops/cuda/tensor_map.cuh"

namespace cubit {
namespace cuda {
namespace {

// libcuda is not linked: programs start where there is no driver.
PFN_cuTensorMapEncodeTiled_v12000 EncodeFunction() {
  static const auto function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      entry = nullptr;
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }();
  return function;
}

}  // namespace

bool MakeTensorMap(const DeviceHeads& heads, const HeadExtents& extents,
                   TensorMap* map) {
  constexpr cuuint64_t kSize = 2;  // of bf16
  const auto encode = EncodeFunction();
  if (encode == nullptr || !heads.vectors) return false;
  const auto bytes = [](int64_t stride) {
    return static_cast<cuuint64_t>(stride) * kSize;
  };
  const cuuint64_t dims[4] = {static_cast<cuuint64_t>(extents.head_dim),
                              static_cast<cuuint64_t>(extents.seq_len),
                              static_cast<cuuint64_t>(extents.num_heads),
                              static_cast<cuuint64_t>(extents.batch)};
  const cuuint64_t strides[3] = {bytes(heads.seq_stride),
                                 bytes(heads.head_stride),
                                 bytes(heads.batch_stride)};
  const cuuint32_t box[4] = {64, kRowsOfMap, 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, heads.data, dims,
                strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace cuda
}  // namespace cubit
