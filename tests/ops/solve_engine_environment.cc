// SPDX-License-Identifier: Apache-2.0
//
// Linked into a test of the solves on a GPU: with CUBIT_TEST_SOLVE_ENGINE=warp
// in the environment all of its cases run on those kernels, also where the GPU
// has warpgroup products.

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
    ASSERT_EQ(std::string(engine), "warp");
    cuda::SetSolveEngine(cuda::SolveEngine::kWarp);
  }
};

[[maybe_unused]] const testing::Environment* const environment =
    testing::AddGlobalTestEnvironment(new SolveEngineEnvironment);

}  // namespace
}  // namespace cubit
