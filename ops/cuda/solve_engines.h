// SPDX-License-Identifier: Apache-2.0
//
// The two kinds of kernels behind the bf16 solves (krr.h, delta_solve.h) on a
// GPU. Both serve every call that the other serves; the products of a tile are
// those of single warps, or of warpgroups of four.

#ifndef CUBIT_OPS_CUDA_SOLVE_ENGINES_H_
#define CUBIT_OPS_CUDA_SOLVE_ENGINES_H_

namespace cubit {
namespace cuda {

enum class SolveEngine {
  kWarp,       // mma.sync: every GPU
  kWarpgroup,  // wgmma: compute capability 9.0, head dims 33 to 64 and above
               // 80; other head dims go to kWarp
};

// Head dims that kWarpgroup serves, padded to 64 and 128.
constexpr bool IsDimOfWarpgroups(int head_dim) {
  return (head_dim > 32 && head_dim <= 64) || head_dim > 80;
}

// Whether this build and this GPU have warpgroup products.
bool HasWarpgroupSolve();

// Of the solves that are queued from now on, in this process; kWarpgroup at
// first where there is one (docs/decisions/0028). CHECK: kWarpgroup needs
// HasWarpgroupSolve.
void SetSolveEngine(SolveEngine engine);
SolveEngine GetSolveEngine();

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_SOLVE_ENGINES_H_
