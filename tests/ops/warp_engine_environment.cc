// SPDX-License-Identifier: Apache-2.0
//
// Linked into a test of the solves on a GPU: all of its cases run on the
// kernels by `mma.sync`, also where the GPU has warpgroup products.

#include "gtest/gtest.h"

#include "ops/cuda/solve_engines.h"

namespace cubit {
namespace {

class WarpEngineEnvironment : public testing::Environment {
 public:
  void SetUp() override { cuda::SetSolveEngine(cuda::SolveEngine::kWarp); }
};

[[maybe_unused]] const testing::Environment* const environment =
    testing::AddGlobalTestEnvironment(new WarpEngineEnvironment);

}  // namespace
}  // namespace cubit
