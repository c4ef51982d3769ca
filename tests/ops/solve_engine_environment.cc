// SPDX-License-Identifier: Apache-2.0
//
// Linked into a test of the solves on a GPU: with CUBIT_TEST_SOLVE_ENGINE=
// warpgroup in the environment all of its cases run on those kernels, and are
// skipped where the GPU has none.

#include <cstdlib>
#include <string>

#include "gtest/gtest.h"

#include "ops/cuda/solve_engines.h"

namespace cubit {
namespace {

class SolveEngineEnvironment : public testing::Environment {
 public:
  void SetUp() override {
    const char* const engine = std::getenv("CUBIT_TEST_SOLVE_ENGINE");
    if (engine == nullptr) return;
    ASSERT_EQ(std::string(engine), "warpgroup");
    if (!cuda::HasWarpgroupSolve()) {
      GTEST_SKIP() << "skipped: no GPU with warpgroup products (sm_90a)";
    }
    cuda::SetSolveEngine(cuda::SolveEngine::kWarpgroup);
  }
};

[[maybe_unused]] const testing::Environment* const environment =
    testing::AddGlobalTestEnvironment(new SolveEngineEnvironment);

}  // namespace
}  // namespace cubit
