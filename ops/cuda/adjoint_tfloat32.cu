// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/adjoint.h"
#include "ops/cuda/adjoint_launch.cuh"

namespace cubit {
namespace cuda {

void AdjointTFloat32(const AdjointArguments& in, cudaStream_t stream) {
  LaunchAdjoint<TFloat32Products>(in, stream);
}

}  // namespace cuda
}  // namespace cubit
