// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/solve_launch.cuh"

namespace cubit {
namespace cuda {

template <typename System>
bool LaunchWarpgroupSolve(const SolveArguments& in, Stream& stream) {
  if (!in.aligned || !IsDimOfWarpgroups(in.head_dim)) return false;
  if (in.head_dim <= 64) {
    LaunchSolver<ForwardSolver<System, BFloat16Products, 64, 4, true>, 3>(
        in, stream);
  } else {
    LaunchSolver<ForwardSolver<System, BFloat16Products, 128, 4, true>, 2>(
        in, stream);
  }
  return true;
}

template bool LaunchWarpgroupSolve<KrrSystem>(const SolveArguments&, Stream&);
template bool LaunchWarpgroupSolve<DeltaSystem>(const SolveArguments&, Stream&);

}  // namespace cuda
}  // namespace cubit
