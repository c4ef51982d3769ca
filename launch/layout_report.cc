// SPDX-License-Identifier: Apache-2.0

#include "launch/layout_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

#include "launch/layout_costs.h"
#include "launch/step_simulator.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

std::string HumanBytes(double bytes) {
  if (bytes < 1024) return absl::StrFormat("%.0f B", bytes);
  if (bytes < 1 << 20) return absl::StrFormat("%.1f KiB", bytes / (1 << 10));
  if (bytes < 1 << 30) return absl::StrFormat("%.1f MiB", bytes / (1 << 20));
  return absl::StrFormat("%.2f GiB", bytes / (1 << 30));
}

void AppendRow(absl::string_view name, absl::string_view value,
               std::string* text) {
  absl::StrAppendFormat(text, "%-20s %s\n", name, value);
}

// "layers 0-5, 12-17".
std::string LayersOf(const ParallelPlan& plan, int stage) {
  std::vector<std::string> ranges;
  for (int chunk = 0; chunk < plan.num_chunks; ++chunk) {
    const LayerRange& range = plan.parts[plan.PartOf(stage, chunk)];
    ranges.push_back(
        absl::StrCat(range.begin, "-", range.begin + range.count - 1));
  }
  return absl::StrJoin(ranges, ", ");
}

void AppendStages(const ParallelPlan& plan, const LayoutCosts& costs,
                  std::string* text) {
  absl::StrAppendFormat(text, "%-6s %-12s %12s %13s%12s%12s%12s%12s%12s\n",
                        "stage", "layers", "parameters", "FLOPs a step",
                        "sent by tp", "cp", "pp", "gradients", "weights");
  for (size_t stage = 0; stage < costs.stages.size(); ++stage) {
    const StageCosts& of = costs.stages[stage];
    absl::StrAppendFormat(text, "%-6d %-12s %12d %13.6g", stage,
                          LayersOf(plan, static_cast<int>(stage)),
                          of.num_parameters, of.step_model_flops);
    for (const double bytes : {of.tp_bytes, of.cp_bytes, of.pp_bytes,
                               of.gradient_bytes, of.weight_bytes}) {
      absl::StrAppendFormat(text, "%12s", HumanBytes(bytes));
    }
    absl::StrAppend(text, "\n");
  }
}

void AppendMemory(const std::vector<RankMemory>& memory, std::string* text) {
  if (memory.empty()) return;
  const RankMemory& largest = LargestRank(memory);
  std::vector<std::string> totals;
  totals.reserve(memory.size());
  for (const RankMemory& rank : memory) {
    totals.push_back(
        absl::StrCat("rank ", rank.rank, " ",
                     HumanBytes(static_cast<double>(rank.total()))));
  }
  AppendRow("memory by stage", absl::StrJoin(totals, ", "), text);
  AppendRow("memory, largest",
            absl::StrFormat("%d bytes (%s), rank %d", largest.total(),
                            HumanBytes(static_cast<double>(largest.total())),
                            largest.rank),
            text);
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    const int64_t bytes = largest.use[category];
    if (bytes == 0) continue;
    AppendRow(absl::StrCat("  ", Name(category)),
              absl::StrFormat("%d bytes (%s)", bytes,
                              HumanBytes(static_cast<double>(bytes))),
              text);
  }
  if (largest.process_bytes > 0) {
    AppendRow("  process",
              absl::StrFormat("%d bytes, about", largest.process_bytes), text);
  }
}

}  // namespace

std::vector<int> DistinctRanks(const ParallelPlan& plan) {
  std::vector<int> ranks;
  for (int stage = 0; stage < plan.mesh.size(MeshAxis::kPp); ++stage) {
    MeshCoordinate first;
    first.pp = stage;
    ranks.push_back(plan.mesh.RankOf(first));
  }
  return ranks;
}

const RankMemory& LargestRank(const std::vector<RankMemory>& memory) {
  CUBIT_CHECK(!memory.empty());
  return *std::max_element(memory.begin(), memory.end(),
                           [](const RankMemory& a, const RankMemory& b) {
                             return a.total() < b.total();
                           });
}

absl::StatusOr<std::string> LayoutReport(const ParallelPlan& plan,
                                         const RunConfig& config,
                                         const ModelConfig& model,
                                         const std::vector<RankMemory>& memory,
                                         const MachineModel& machine) {
  CUBIT_ASSIGN_OR_RETURN(const LayoutCosts costs,
                         MakeLayoutCosts(plan, config, model));
  CUBIT_ASSIGN_OR_RETURN(
      const StepEstimate estimate,
      SimulateStep(plan, costs, machine, MessageMode::kBlocking));
  std::string text;
  AppendRow("layout", plan.ToString(), &text);
  if (!plan.cp_reason.empty()) {
    AppendRow("sequences by",
              absl::StrCat(plan.CpMethodName(model), ": ", plan.cp_reason),
              &text);
  }
  for (const std::string& warning : plan.warnings) {
    AppendRow("warning", warning, &text);
  }
  AppendStages(plan, costs, &text);
  AppendMemory(memory, &text);
  absl::StrAppendFormat(&text,
                        "estimate for %s, %d ranks a node (rates and links of "
                        "launch/machine_model.cc):\n",
                        machine.device.name, plan.ranks_per_node);
  absl::StrAppend(&text, estimate.ToString());
  return text;
}

}  // namespace cubit
