// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/adjoint.h"
#include "ops/cuda/adjoint_launch.cuh"

namespace cubit {
namespace cuda {

void AdjointBFloat16(const AdjointArguments& in, cudaStream_t stream) {
  LaunchAdjoint<BFloat16Products>(in, stream);
}

}  // namespace cuda
}  // namespace cubit
