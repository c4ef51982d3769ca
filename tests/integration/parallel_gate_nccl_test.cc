// SPDX-License-Identifier: Apache-2.0
//
// Cells of the gate on GPUs: ranks are processes under mpirun, tensors move
// through NCCL. Where there are fewer GPUs than ranks, ranks share one, which
// takes seconds a cell; CUBIT_TEST_RANKS=2 leaves out the cells of four ranks
// and needs two GPUs alone.
//
// In bf16 a layout may be off by twice what one rank in bf16 is off, both from
// one rank in fp32: it rounds the same tensors, some of them once more.

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/communicator_mpi.h"
#include "runtime/communicator_nccl.h"
#include "runtime/communicator_single.h"
#include "tests/integration/parallel_gate.h"
#include "tests/runtime/mpi_test_main.h"
#include "tests/runtime/nccl_test_device.h"

namespace cubit {
namespace {

int NumRanks() {
  const char* const text = std::getenv("CUBIT_TEST_RANKS");
  int ranks = 4;
  if (text != nullptr) CUBIT_CHECK(absl::SimpleAtoi(text, &ranks)) << text;
  return ranks;
}

constexpr double kBfloat16Unit = 1.0 / 256;
// fp32, where the solve's products are of three bf16 each: 2^-16 a product.
constexpr double kFloat32Tolerance = 1e-4;

// Sizes that the GPU's tiles do not divide; heads of 64, which warpgroups solve
// in bf16.
constexpr char kSizes[] =
    " model.hidden_size=256 model.ffn_hidden_size=512 model.seq_len=192";

// Those of the gate that the ranks can hold, in both precisions.
std::vector<GateCell> Cells() {
  std::vector<GateCell> cells;
  for (const GateCell& of_gate : GateCells()) {
    if (of_gate.world_size() > NumRanks()) continue;
    for (const char* compute : {"bf16", "fp32"}) {
      GateCell cell = of_gate;
      absl::StrAppend(&cell.name, "_", compute);
      cell.model += kSizes;
      absl::StrAppend(&cell.layout, " precision.compute=", compute);
      cell.device = "cuda";
      cells.push_back(cell);
    }
  }
  return cells;
}

bool IsBfloat16(const GateCell& cell) {
  return cell.layout.find("precision.compute=bf16") != std::string::npos;
}

// What one rank in bf16 is off; made once for each model.
GateBudget Bfloat16Budget(const GateCell& cell,
                          const GateReference& reference) {
  static auto& made = *new std::map<std::string, GateBudget>;
  const auto found = made.find(cell.model);
  if (found != made.end()) return found->second;
  GateCell alone = cell;
  alone.dp = alone.tp = alone.pp = alone.cp = 1;
  alone.layout = "precision.compute=bf16";
  GateRun run;
  std::map<std::string, GateError> errors;
  CUBIT_CHECK_OK(RunGateCell(alone, MakeSingleCommunicator("world"),
                             MakeSingleCommunicator("control"), reference, &run,
                             &errors));
  return made[cell.model] =
             BudgetFrom(reference, run, errors, /*factor=*/2, kBfloat16Unit);
}

std::unique_ptr<Communicator> Take(
    absl::StatusOr<std::unique_ptr<Communicator>> made) {
  CUBIT_CHECK_OK(made);
  return *std::move(made);
}

class ParallelGateNccl : public testing::TestWithParam<GateCell> {
 protected:
  static bool HasGpu() {
    static const bool has_gpu =
        UseTestGpu(TestSession().rank(), TestSession().size());
    return has_gpu;
  }
};

TEST_P(ParallelGateNccl, ComputesWhatOneRankComputes) {
  if (!HasGpu()) GTEST_SKIP() << "skipped: no GPU";
  const GateCell& cell = GetParam();
  auto all = Take(TestSession().MakeCommunicator(
      "all", {absl::Seconds(120), int64_t{16} << 20}));
  ASSERT_LE(cell.world_size(), all->size());
  const bool takes_part = all->rank() < cell.world_size();
  const auto split = [&](const char* name) {
    return Take(all->Split(takes_part ? 0 : -1, 0, name));
  };
  auto host = split("world");
  auto control = split("control");
  const auto results = split("results");
  if (!takes_part) return;
  const GateReference& reference = GateReference::Of(cell);
  const GateBudget budget = IsBfloat16(cell)
                                ? Bfloat16Budget(cell, reference)
                                : FlatBudget(reference, kFloat32Tolerance);
  auto world =
      Take(MakeNcclCommunicator(std::move(host), {absl::Seconds(120)}));
  GateRun run;
  std::map<std::string, GateError> errors;
  const absl::Status status = RunGateCell(
      cell, std::move(world), std::move(control), reference, &run, &errors);
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<std::string> differences = CompareWithReference(
      reference, run, SumGateErrors(reference, errors, *results), budget);
  EXPECT_TRUE(differences.empty()) << absl::StrJoin(differences, "\n");
}

INSTANTIATE_TEST_SUITE_P(Cells, ParallelGateNccl, testing::ValuesIn(Cells()),
                         [](const testing::TestParamInfo<GateCell>& cell) {
                           return cell.param.name;
                         });

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  return cubit::RunTestsUnderMpi(argc, argv, cubit::NumRanks());
}
