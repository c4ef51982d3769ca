// SPDX-License-Identifier: Apache-2.0

#include <type_traits>

#include "ops/cuda/solve_launch.cuh"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {

namespace {

template <typename System, int kDim, int kBlocksOfMultiprocessor>
void Launch(const SolveArguments& in, Stream& stream) {
  constexpr auto launch = [](auto few_heads) {
    return LaunchSolver<
        ForwardSolver<System, BFloat16Products, kDim, /*kNumWarps=*/4,
                      /*kWarpgroup=*/true, /*kContinues=*/false,
                      decltype(few_heads)::value>,
        kBlocksOfMultiprocessor>;
  };
  // Four and more blocks of every head at once: all but one of them wait.
  const bool few_heads =
      4 * in.num_pairs <= kBlocksOfMultiprocessor * NumMultiprocessors();
  (few_heads ? launch(std::true_type()) : launch(std::false_type()))(in,
                                                                     stream);
}

}  // namespace

template <typename System>
bool LaunchWarpgroupSolve(const SolveArguments& in, Stream& stream) {
  if (!in.aligned || !IsDimOfWarpgroups(in.head_dim)) return false;
  if (in.head_dim <= 64) {
    Launch<System, 64, 3>(in, stream);
  } else {
    Launch<System, 128, 2>(in, stream);
  }
  return true;
}

template bool LaunchWarpgroupSolve<KrrSystem>(const SolveArguments&, Stream&);
template bool LaunchWarpgroupSolve<DeltaSystem>(const SolveArguments&, Stream&);

}  // namespace cuda
}  // namespace cubit
