// SPDX-License-Identifier: Apache-2.0

#include "launch/parallel_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

#include "launch/machine_model.h"
#include "launch/model_costs.h"
#include "launch/plan_checks.h"
#include "launch/sequence_cost.h"
#include "parallel/pipeline_simulator.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Int = int64_t;

// Sizes of num_parts runs of num_layers layers. A run costs its length, the
// last one head_cost more: sums are of whole numbers but for that one, so that
// equal choices are equal in every bit.
class Balancer {
 public:
  Balancer(Int num_layers, int num_parts, double head_cost)
      : num_layers_(num_layers), num_parts_(num_parts), head_cost_(head_cost) {}

  std::vector<Int> Run() {
    limit_ = Solve(/*largest=*/true);
    Solve(/*largest=*/false);
    std::vector<Int> sizes;
    Int rest = num_layers_;
    for (int part = num_parts_; part >= 1; --part) {
      const Int size = choice_[Index(part, rest)];
      sizes.push_back(size);
      rest -= size;
    }
    std::reverse(sizes.begin(), sizes.end());
    return sizes;
  }

 private:
  size_t Index(int part, Int layers) const {
    return static_cast<size_t>(part * (num_layers_ + 1) + layers);
  }
  double CostOfRun(int part, Int size) const {
    return static_cast<double>(size) + (part == num_parts_ ? head_cost_ : 0);
  }
  // Best value of the first `part` runs over `layers` layers, for all of both:
  // the largest cost, or the sum of squares where no cost is above limit_.
  double Solve(bool largest) {
    constexpr double kNever = std::numeric_limits<double>::infinity();
    const size_t states = Index(num_parts_, num_layers_) + 1;
    std::vector<double> best(states, kNever);
    choice_.assign(states, 0);
    best[Index(0, 0)] = 0;
    for (int part = 1; part <= num_parts_; ++part) {
      for (Int layers = part; layers <= num_layers_; ++layers) {
        for (Int size = 1; size <= layers - part + 1; ++size) {
          const double before = best[Index(part - 1, layers - size)];
          const double cost = CostOfRun(part, size);
          if (!largest && cost > limit_) continue;
          const double value =
              largest ? std::max(before, cost) : before + cost * cost;
          // Of equals the last, longest run: earlier ones are shorter.
          double& found = best[Index(part, layers)];
          if (value > found) continue;
          found = value;
          choice_[Index(part, layers)] = size;
        }
      }
    }
    return best.back();
  }

  const Int num_layers_;
  const int num_parts_;
  const double head_cost_;
  double limit_ = 0;
  std::vector<Int> choice_;
};

// nodes x gpus_per_node against the ranks that there are.
std::string NodesFault(const RunConfig::Parallel& parallel, int world_size) {
  const Int nodes = parallel.nodes();
  const Int per_node = parallel.gpus_per_node();
  if (per_node > 0 && nodes * per_node != world_size) {
    return absl::StrCat("parallel.nodes ", nodes, " x parallel.gpus_per_node ",
                        per_node, " are ", nodes * per_node,
                        " ranks, and there are ", world_size);
  }
  if (nodes < 1 || world_size % nodes != 0) {
    return absl::StrCat(world_size, " ranks do not spread evenly over ", nodes,
                        " nodes (parallel.nodes)");
  }
  return "";
}

std::vector<std::string> OtherFaults(const RunConfig& config, int world_size) {
  std::vector<std::string> faults;
  const RunConfig::Parallel& parallel = config.parallel();
  const std::string nodes = NodesFault(parallel, world_size);
  if (!nodes.empty()) faults.push_back(nodes);
  const bool spread = parallel.tp_size() > 1 || parallel.cp_size() > 1 ||
                      parallel.pp_size() > 1;
  if (spread && config.evaluation().tasks_size() > 0) {
    faults.push_back(
        "evaluation.tasks are scored inside the loop by ranks that hold the "
        "whole model, and tp_size, cp_size or pp_size is above 1; take them "
        "out with --set evaluation.tasks= and run //launch:evaluate --follow "
        "beside the run");
  }
  return faults;
}

absl::Status CheckRequest(const RunConfig& config, const ModelConfig& model,
                          const LayoutRequest& request, int world_size) {
  std::vector<std::string> faults = LayoutFaults(request, model);
  if (!faults.empty()) {
    const std::string nearest = NearestLayout(request, model);
    faults.push_back(
        nearest.empty() ? absl::StrCat("no layout of ", world_size,
                                       " ranks works for this model and batch")
                        : absl::StrCat("nearest layout that works: ", nearest));
  }
  for (std::string& fault : OtherFaults(config, world_size)) {
    faults.push_back(std::move(fault));
  }
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(faults, "\n"));
}

std::string Milliseconds(double seconds) {
  return absl::StrFormat("%.3g ms", 1e3 * seconds);
}

absl::Status ChooseCpMethod(const LayoutRequest& request,
                            const ModelConfig& model, ParallelPlan* plan) {
  if (request.cp_size == 1) return absl::OkStatus();
  const std::string form(ShardedFormOf(model.mixer));
  const Int heads = model.num_heads / request.tp_size;
  if (request.cp_method != RunConfig::CpMethod::auto_) {
    plan->cp_method = request.cp_method == RunConfig::CpMethod::ulysses
                          ? CpMethod::kUlysses
                          : CpMethod::kSharded;
    plan->cp_reason = "asked for";
    return absl::OkStatus();
  }
  if (form.empty()) {
    plan->cp_method = CpMethod::kUlysses;
    plan->cp_reason = "the mixer has no form on shards";
    return absl::OkStatus();
  }
  if (heads % request.cp_size != 0) {
    plan->cp_method = CpMethod::kSharded;
    plan->cp_reason =
        absl::StrCat("the ", heads, " heads of a tp rank are no multiple of ",
                     request.cp_size, ", as ulysses needs");
    return absl::OkStatus();
  }
  CUBIT_ASSIGN_OR_RETURN(const SequenceCall call,
                         MakeSequenceCall(model, request.micro_batch_size,
                                          static_cast<int>(request.tp_size),
                                          static_cast<int>(request.cp_size)));
  // A plan does not know which GPU; an H100 differs in its memory's rate alone.
  MachineModel machine = MachineModelOf(request.gpu ? "h200" : "cpu");
  machine.ranks_per_node = plan->ranks_per_node;
  const LinkModel& link = machine.LinkOf(request.tp_size * request.cp_size);
  const SequenceCost ulysses =
      CostOf(CpMethod::kUlysses, call, machine.device, link);
  const SequenceCost sharded =
      CostOf(CpMethod::kSharded, call, machine.device, link);
  const bool choose_ulysses = ulysses.seconds() <= sharded.seconds();
  plan->cp_method = choose_ulysses ? CpMethod::kUlysses : CpMethod::kSharded;
  plan->cp_reason = absl::StrFormat(
      "by the cost model a layer and micro-batch would wait %s for ulysses "
      "(%.3g MB sent) and %s for %s (%.3g MB beside the computation; %.1f%% "
      "of a forward idle, %.1f%% of a backward)",
      Milliseconds(ulysses.seconds()),
      BytesOf(CpMethod::kUlysses, call).total() / 1e6,
      Milliseconds(sharded.seconds()), form,
      BytesOf(CpMethod::kSharded, call).total() / 1e6,
      100 * sharded.forward_idle, 100 * sharded.backward_idle);
  return absl::OkStatus();
}

// Share of time spent waiting where a backward takes twice as long as a forward
// and messages are waited for, as RunPipeline does.
absl::StatusOr<double> WaitingShare(PipelineSchedule schedule,
                                    const PipelineShape& shape) {
  CUBIT_ASSIGN_OR_RETURN(const auto programs, MakePipeline(schedule, shape));
  PipelineTimes times;
  times.backward = 2;
  CUBIT_ASSIGN_OR_RETURN(
      const PipelineRun run,
      SimulatePipeline(programs, shape, times, MessageMode::kBlocking));
  return run.bubble_fraction;
}

absl::Status WarnOfInterleaving(ParallelPlan* plan) {
  if (plan->schedule != PipelineSchedule::kInterleaved1F1B) {
    return absl::OkStatus();
  }
  PipelineShape shape = plan->pipeline_shape();
  // More micro-batches change the shares alike and take long to simulate.
  shape.num_micro_batches =
      std::min(shape.num_micro_batches, int64_t{8} * shape.pp_size);
  CUBIT_ASSIGN_OR_RETURN(const double interleaved,
                         WaitingShare(plan->schedule, shape));
  shape.num_chunks = 1;
  CUBIT_ASSIGN_OR_RETURN(const double plain,
                         WaitingShare(PipelineSchedule::k1F1B, shape));
  if (interleaved < plain) return absl::OkStatus();
  plan->warnings.push_back(absl::StrFormat(
      "interleaved stages would wait %.0f%% of the time and those of "
      "one_f_one_b "
      "%.0f%%: messages are waited for, and there are twice as many; "
      "--set parallel.pipeline_schedule=one_f_one_b is faster",
      100 * interleaved, 100 * plain));
  return absl::OkStatus();
}

void AddWarnings(const ModelConfig& model, ParallelPlan* plan) {
  const int tp = plan->mesh.size(MeshAxis::kTp);
  const int per_node = plan->ranks_per_node;
  if (tp > 1 && per_node % tp != 0) {
    int inside = 1;
    for (int size = 1; size <= per_node; ++size) {
      if (per_node % size == 0 && model.num_heads % size == 0 && tp % size == 0)
        inside = size;
    }
    plan->warnings.push_back(absl::StrCat(
        "groups of tp ", tp, " reach beyond a node of ", per_node,
        per_node == 1 ? " rank" : " ranks",
        ": every layer waits for the network four times",
        inside > 1 ? absl::StrCat("; --tp=", inside, " stays inside") : ""));
  }
  const double bubble = IdealBubbleFraction(plan->pipeline_shape());
  if (plan->num_micro_batches < plan->mesh.size(MeshAxis::kPp)) {
    plan->warnings.push_back(absl::StrFormat(
        "%d micro-batches cannot fill %d pipeline stages: stages wait %.0f%% "
        "of a step; smaller micro-batches or fewer stages help",
        plan->num_micro_batches, plan->mesh.size(MeshAxis::kPp), 100 * bubble));
  }
}

std::string RangeName(const LayerRange& range) {
  return range.count == 1
             ? absl::StrCat(range.begin)
             : absl::StrCat(range.begin, "-", range.begin + range.count - 1);
}

}  // namespace

ModelShard ParallelPlan::ShardOf(int rank) const {
  const MeshCoordinate at = mesh.CoordinateOf(rank);
  const int pp_size = mesh.size(MeshAxis::kPp);
  ModelShard shard;
  shard.tp_rank = at.tp;
  shard.tp_size = mesh.size(MeshAxis::kTp);
  shard.cp_rank = at.cp;
  shard.cp_size = mesh.size(MeshAxis::kCp);
  shard.cp_method = cp_method;
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    shard.chunks.push_back(parts[PartOf(at.pp, chunk)]);
  }
  shard.embedding = at.pp == 0;
  shard.head = at.pp == pp_size - 1;
  return shard;
}

size_t ParallelPlan::PartOf(int stage, int chunk) const {
  const auto pp_size = static_cast<size_t>(mesh.size(MeshAxis::kPp));
  return static_cast<size_t>(chunk) * pp_size + static_cast<size_t>(stage);
}

PipelineShape ParallelPlan::pipeline_shape() const {
  PipelineShape shape;
  shape.pp_size = mesh.size(MeshAxis::kPp);
  shape.num_micro_batches = num_micro_batches;
  shape.num_chunks = num_chunks;
  return shape;
}

std::string ParallelPlan::CpMethodName(const ModelConfig& model) const {
  return cp_method == CpMethod::kUlysses
             ? "ulysses"
             : std::string(ShardedFormOf(model.mixer));
}

std::string ParallelPlan::ToString() const {
  std::vector<std::string> ranges;
  for (const LayerRange& part : parts) ranges.push_back(RangeName(part));
  return absl::StrCat(mesh.ToString(), "; layers ",
                      absl::StrJoin(ranges, " | "), "; ", Name(schedule),
                      " of ", num_micro_batches, " micro-batches");
}

absl::StatusOr<ParallelPlan> MakeParallelPlan(const RunConfig& config,
                                              const ModelConfig& model,
                                              int world_size,
                                              absl::string_view device_kind) {
  const LayoutRequest request = RequestOf(config, world_size, device_kind);
  CUBIT_RETURN_IF_ERROR(CheckRequest(config, model, request, world_size));
  CUBIT_ASSIGN_OR_RETURN(
      const DeviceMesh mesh,
      DeviceMesh::Create(world_size, static_cast<int>(request.tp_size),
                         static_cast<int>(request.cp_size),
                         static_cast<int>(request.pp_size)));
  ParallelPlan plan(mesh);
  plan.ranks_per_node = world_size / config.parallel().nodes();
  plan.schedule = request.pipeline_schedule();
  plan.num_chunks = request.num_chunks();
  plan.num_micro_batches = request.global_batch_size /
                           (request.micro_batch_size * request.dp_size());
  CUBIT_ASSIGN_OR_RETURN(const ModelCosts costs, MakeModelCosts(model));
  plan.parts = BalanceLayers(
      model.num_layers, static_cast<int>(request.pp_size) * plan.num_chunks,
      costs.HeadForwardFlops() / costs.LayerForwardFlops());
  CUBIT_RETURN_IF_ERROR(ChooseCpMethod(request, model, &plan));
  AddWarnings(model, &plan);
  CUBIT_RETURN_IF_ERROR(WarnOfInterleaving(&plan));
  return plan;
}

std::vector<LayerRange> BalanceLayers(int64_t num_layers, int num_parts,
                                      double head_cost) {
  CUBIT_CHECK(num_parts >= 1 && num_parts <= num_layers)
      << num_layers << " layers as " << num_parts << " parts";
  std::vector<LayerRange> parts;
  LayerRange part;
  for (const Int size : Balancer(num_layers, num_parts, head_cost).Run()) {
    part.count = size;
    parts.push_back(part);
    part.begin += size;
  }
  return parts;
}

}  // namespace cubit
