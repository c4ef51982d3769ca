// SPDX-License-Identifier: Apache-2.0
//
// Descriptions of [B, T, H, K] tensors for the copy engine of sm_90
// (bulk_copy.cuh).

#ifndef CUBIT_OPS_CUDA_TENSOR_MAP_CUH_
#define CUBIT_OPS_CUDA_TENSOR_MAP_CUH_

#include <cuda.h>

#include "ops/cuda/adjoint.h"

namespace cubit {
namespace cuda {

using TensorMap = CUtensorMap;

struct HeadExtents {
  int batch = 0;
  int seq_len = 0;
  int num_heads = 0;
  int head_dim = 0;
};

constexpr int kRowsOfMap = 64;

// For copies of kRowsOfMap rows of 64 columns of one head of a bf16 tensor, in
// the 128-byte swizzle. False if heads.vectors is, or the driver has no such
// copies or refuses the tensor; then *map is not to be used.
bool MakeTensorMap(const DeviceHeads& heads, const HeadExtents& extents,
                   TensorMap* map);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_TENSOR_MAP_CUH_
