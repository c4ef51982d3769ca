// SPDX-License-Identifier: Apache-2.0
//
// The gate with ranks that are threads of this process.

#include "tests/integration/parallel_gate.h"

#include <thread>

#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/communicator_threads.h"

namespace cubit {
namespace {

// Of losses and gradients in fp32, relative.
constexpr double kTolerance = 1e-5;
constexpr absl::Duration kLimit = absl::Seconds(60);

struct GateResult {
  GateRun run;
  std::map<std::string, GateError> errors;
};

GateResult RunOnThreads(const GateCell& cell) {
  const GateReference& reference = GateReference::Of(cell);
  auto world = MakeThreadCommunicators("world", cell.world_size(), kLimit);
  auto control = MakeThreadCommunicators("control", cell.world_size(), kLimit);
  std::vector<GateResult> results(world.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < world.size(); ++r) {
    threads.emplace_back([&, r] {
      const absl::Status status =
          RunGateCell(cell, std::move(world[r]), std::move(control[r]),
                      reference, &results[r].run, &results[r].errors);
      EXPECT_TRUE(status.ok()) << "rank " << r << ": " << status;
    });
  }
  for (std::thread& thread : threads) thread.join();
  GateResult all = std::move(results[0]);
  for (size_t r = 1; r < results.size(); ++r) {
    EXPECT_EQ(results[r].run.losses, all.run.losses) << "rank " << r;
    EXPECT_EQ(results[r].run.grad_norms, all.run.grad_norms) << "rank " << r;
    for (const auto& [name, error] : results[r].errors) {
      GateError& sum = all.errors[name];
      sum.difference += error.difference;
      sum.reference += error.reference;
      sum.elements += error.elements;
    }
  }
  return all;
}

class ParallelGate : public testing::TestWithParam<GateCell> {};

TEST_P(ParallelGate, ComputesWhatOneRankComputes) {
  const GateResult result = RunOnThreads(GetParam());
  if (HasFailure()) return;
  const GateReference& reference = GateReference::Of(GetParam());
  const std::vector<std::string> differences = CompareWithReference(
      reference, result.run, result.errors, FlatBudget(reference, kTolerance));
  EXPECT_TRUE(differences.empty()) << absl::StrJoin(differences, "\n");
}

INSTANTIATE_TEST_SUITE_P(Cells, ParallelGate, testing::ValuesIn(GateCells()),
                         [](const testing::TestParamInfo<GateCell>& cell) {
                           return cell.param.name;
                         });

TEST(ParallelGateRepeated, GivesTheSameBits) {
  for (const GateCell& cell : GateCells()) {
    if (cell.world_size() != 8) continue;
    const GateResult first = RunOnThreads(cell);
    const GateResult second = RunOnThreads(cell);
    EXPECT_EQ(first.run.losses, second.run.losses) << cell.name;
    EXPECT_EQ(first.run.grad_norms, second.run.grad_norms) << cell.name;
  }
}

}  // namespace
}  // namespace cubit
