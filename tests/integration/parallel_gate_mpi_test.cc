// SPDX-License-Identifier: Apache-2.0
//
// Cells of the gate with ranks that are processes under mpirun: the messages
// are MPI's, everything else is what the threads of parallel_gate_test do.

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/communicator_mpi.h"
#include "tests/integration/parallel_gate.h"
#include "tests/runtime/mpi_test_main.h"

namespace cubit {
namespace {

constexpr double kTolerance = 1e-5;  // as in parallel_gate_test

std::unique_ptr<Communicator> World(const std::string& name) {
  auto world = TestSession().MakeCommunicator(
      name, {absl::Seconds(60), int64_t{16} << 20});
  CUBIT_CHECK_OK(world);
  return *std::move(world);
}

class ParallelGateMpi : public testing::TestWithParam<GateCell> {};

TEST_P(ParallelGateMpi, ComputesWhatOneRankComputes) {
  const GateCell& cell = GetParam();
  auto all = World("all");
  ASSERT_LE(cell.world_size(), all->size());
  const bool takes_part = all->rank() < cell.world_size();
  auto world = all->Split(takes_part ? 0 : -1, 0, "world");
  auto control = all->Split(takes_part ? 0 : -1, 0, "control");
  auto results = all->Split(takes_part ? 0 : -1, 0, "results");
  CUBIT_CHECK_OK(world);
  CUBIT_CHECK_OK(control);
  CUBIT_CHECK_OK(results);
  if (!takes_part) return;
  const GateReference& reference = GateReference::Of(cell);
  GateRun run;
  std::map<std::string, GateError> errors;
  const absl::Status status = RunGateCell(
      cell, *std::move(world), *std::move(control), reference, &run, &errors);
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<std::string> differences = CompareWithReference(
      reference, run, SumGateErrors(reference, errors, **results),
      FlatBudget(reference, kTolerance));
  EXPECT_TRUE(differences.empty()) << absl::StrJoin(differences, "\n");
}

// Those that four processes can hold, of two mixers.
std::vector<GateCell> Cells() {
  std::vector<GateCell> cells;
  for (const GateCell& cell : GateCells()) {
    const bool chosen = cell.name.rfind("cubit_share_docs", 0) == 0 ||
                        cell.name.rfind("transformer", 0) == 0;
    if (chosen && cell.world_size() <= 4) cells.push_back(cell);
  }
  return cells;
}

INSTANTIATE_TEST_SUITE_P(Cells, ParallelGateMpi, testing::ValuesIn(Cells()),
                         [](const testing::TestParamInfo<GateCell>& cell) {
                           return cell.param.name;
                         });

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  return cubit::RunTestsUnderMpi(argc, argv, /*num_ranks=*/4);
}
