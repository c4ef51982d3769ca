// SPDX-License-Identifier: Apache-2.0

#include <atomic>

#include "ops/cuda/solve_engines.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
bool HasWarpgroupSolve() {
#if defined(CUBIT_CUDA_SM90A)
  static const bool has = [] {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return false;
    int device = 0, major = 0, minor = 0;
    CUBIT_CUDA_CHECK(cudaGetDevice(&device));
    CUBIT_CUDA_CHECK(cudaDeviceGetAttribute(
        &major, cudaDevAttrComputeCapabilityMajor, device));
    CUBIT_CUDA_CHECK(cudaDeviceGetAttribute(
        &minor, cudaDevAttrComputeCapabilityMinor, device));
    return major == 9 && minor == 0;
  }();
  return has;
#else
  return false;
#endif
}

namespace {

std::atomic<SolveEngine>& Engine() {
  static std::atomic<SolveEngine> engine{
      HasWarpgroupSolve() ? SolveEngine::kWarpgroup : SolveEngine::kWarp};
  return engine;
}

}  // namespace

void SetSolveEngine(SolveEngine engine) {
  CUBIT_CHECK(engine == SolveEngine::kWarp || HasWarpgroupSolve())
      << "warpgroup products need a GPU of compute capability 9.0 and a build "
         "for sm_90a";
  Engine() = engine;
}

SolveEngine GetSolveEngine() { return Engine(); }

}  // namespace cuda
}  // namespace cubit
