// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/solve_launch.cuh"

namespace cubit {
namespace cuda {

template void LaunchForProducts<KrrSystem, TFloat32Products>(
    const SolveArguments&, Stream&);
template void LaunchForProducts<DeltaSystem, TFloat32Products>(
    const SolveArguments&, Stream&);

}  // namespace cuda
}  // namespace cubit
