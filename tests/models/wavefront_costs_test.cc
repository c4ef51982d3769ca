// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/wavefront_costs.h"

#include "gtest/gtest.h"

#include "models/mixers/sequence_groups.h"
#include "parallel/sequence_layout.h"
#include "parallel/wavefront_schedule.h"
#include "parallel/wavefront_simulator.h"

namespace cubit {
namespace {

using Kind = WavefrontActionKind;

SequenceGroups Groups(int64_t seq_len, int cp_size, int64_t batch) {
  return SequenceGroups(SequenceLayout(seq_len, cp_size), batch,
                        /*num_heads=*/16);
}

TEST(WavefrontCosts, OfACpuAreTheUnits) {
  const WavefrontCosts got =
      WavefrontCostsOf(Groups(8192, 4, 8), 128, DType::kFloat32);
  const WavefrontCosts units;
  EXPECT_EQ(got.broadcast, units.broadcast);
  EXPECT_EQ(got.reduce, units.reduce);
  EXPECT_EQ(got.actions[0].pair, units.actions[0].pair);
}

// Pairs grow with the square of a chunk, messages with its length, once a
// launch is no longer what a pair costs.
TEST(WavefrontCosts, OfAGpuLetLongChunksHideMessages) {
  const auto share = [](int64_t seq_len) {
    WavefrontCosts costs =
        GpuWavefrontCosts(Groups(seq_len, 4, 4), 128, DType::kBFloat16);
    return costs.reduce / costs[Kind::kUpdate].pair;
  };
  EXPECT_GT(share(8192), share(32768));
  EXPECT_GT(share(32768), share(131072));
}

TEST(WavefrontCosts, OfAGpuMakeSchedulesThatEndWithoutWaitingMuch) {
  for (const int64_t seq_len : {8192, 32768}) {
    const SequenceGroups groups = Groups(seq_len, 4, 8);
    const WavefrontCosts costs =
        GpuWavefrontCosts(groups, 128, DType::kBFloat16);
    for (const WavefrontPass pass :
         {WavefrontPass::kForward, WavefrontPass::kBackward}) {
      const double busy = WavefrontEfficiency(
          pass, /*attention=*/true,
          WavefrontShape::Of(groups.layout(), groups.count()), costs);
      EXPECT_GT(busy, 0.8) << seq_len;
      EXPECT_LE(busy, 1) << seq_len;
    }
  }
}

}  // namespace
}  // namespace cubit
