// SPDX-License-Identifier: Apache-2.0

#include "ops/sum_parts.h"

#include <vector>

#include "gtest/gtest.h"

#include "ops/sum_parts_reference.h"
#include "tests/ops/backend_budget.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::HostTensor;
using ::cubit::testing::IsWithinBudget;
using ::cubit::testing::Poisoned;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::ToDouble;

struct Size {
  int64_t num_parts;
  int64_t num_rows;
  int64_t dim;
};

class SumPartsOp : public ::testing::TestWithParam<Size> {
 protected:
  Size s = GetParam();
  HostTensor<float> parts =
      RandomNormal(1, "parts", {s.num_parts, s.num_rows, s.dim});
  HostTensor<float> bias = RandomNormal(1, "bias", {s.dim});
  HostTensor<float> residual = RandomNormal(1, "residual", {s.num_rows, s.dim});
  HostTensor<float> y = Poisoned({s.num_rows, s.dim});
  Stream stream;
};

TEST_P(SumPartsOp, MatchesReference) {
  const auto want = [&](auto convert) {
    return reference::SumParts(convert(parts.values()), convert(bias.values()),
                               convert(residual.values()),
                               static_cast<size_t>(s.num_parts));
  };
  SumParts(parts.view(), bias.view(), residual.view(), y.view(), stream);
  EXPECT_TRUE(IsWithinBudget(
      y.values(), want([](const std::vector<float>& x) { return x; }),
      want([](const std::vector<float>& x) { return ToDouble(x); })));
}

// The order of the sum is part of the contract: every bit.
TEST_P(SumPartsOp, AddsInTheOrderOfThePartsAndMayOverwriteTheResidual) {
  const auto want = [&](const std::vector<float>& with_bias,
                        const std::vector<float>& with_residual) {
    return reference::SumParts(parts.values(), with_bias, with_residual,
                               static_cast<size_t>(s.num_parts));
  };
  SumParts(parts.view(), {}, {}, y.view(), stream);
  EXPECT_EQ(y.values(), want({}, {}));
  SumParts(parts.view(), bias.view(), {}, y.view(), stream);
  EXPECT_EQ(y.values(), want(bias.values(), {}));
  const std::vector<float> both = want(bias.values(), residual.values());
  SumParts(parts.view(), bias.view(), residual.view(), residual.view(), stream);
  EXPECT_EQ(residual.values(), both);
}

// One part; one element; odd rows; rows of packs over one block of the CPU's
// sums; many rows.
INSTANTIATE_TEST_SUITE_P(Sizes, SumPartsOp,
                         ::testing::Values(Size{1, 3, 8}, Size{2, 1, 1},
                                           Size{3, 5, 37}, Size{4, 7, 600},
                                           Size{8, 300, 64}));

TEST(SumParts, OfNoRowsIsNothing) {
  const HostTensor<float> parts({2, 0, 4});
  HostTensor<float> y({0, 4});
  Stream stream;
  SumParts(parts.view(), {}, {}, y.view(), stream);
}

}  // namespace
}  // namespace cubit
