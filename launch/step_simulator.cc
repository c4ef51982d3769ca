// SPDX-License-Identifier: Apache-2.0

#include "launch/step_simulator.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "launch/sequence_cost.h"
#include "parallel/pipeline_schedule.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr double kUpdateBytes = 30;  // AdamW with the bf16 copy
constexpr double kNormBytes = 4;     // a gradient is read
constexpr double kZeroBytes = 4;     // or written, of every parameter on a rank
constexpr double kBucketBytes = 64 << 20;  // of GradientReducer

// One pass of one micro-batch through one part.
struct PassSeconds {
  double compute = 0;
  double tp = 0;
  double cp = 0;

  double total() const { return compute + tp + cp; }
  void Add(const PassSeconds& other) {
    compute += other.compute;
    tp += other.tp;
    cp += other.cp;
  }
};

// A transfer of `transfer` seconds that goes layer by layer ahead of (or
// behind) `work` seconds in `num_layers` equal pieces: by how much both
// together are longer than the work. A piece is worked on when it is here.
double Exposed(double transfer, double work, double num_layers) {
  if (transfer <= 0) return 0;
  const double layers = std::max(num_layers, 1.0);
  return std::max(transfer / layers, transfer - work + work / layers);
}

class StepModel {
 public:
  StepModel(const ParallelPlan& plan, const LayoutCosts& costs,
            const MachineModel& machine, MessageMode messages)
      : plan_(plan),
        costs_(costs),
        machine_(machine),
        messages_(messages),
        tp_(plan.mesh.size(MeshAxis::kTp)),
        cp_(plan.mesh.size(MeshAxis::kCp)),
        dp_(plan.mesh.size(MeshAxis::kDp)),
        pp_(plan.mesh.size(MeshAxis::kPp)) {
    machine_.ranks_per_node = plan.ranks_per_node;
    sequence_ = CostOf(plan.cp_method, costs.mixer, machine_.device,
                       machine_.LinkOf(tp_ * cp_));
    for (const PartCosts& part : costs.parts) {
      forward_.push_back(Forward(part));
      backward_.push_back(Backward(part));
    }
  }

  absl::StatusOr<StepEstimate> Run() {
    StepEstimate estimate;
    CUBIT_ASSIGN_OR_RETURN(const PipelineRun free, Pipeline(0));
    const LinkModel& link = machine_.LinkOf(plan_.mesh.world_size());
    const double message =
        pp_ == 1 ? 0 : link.Seconds(costs_.pp_message_bytes, 1);
    CUBIT_ASSIGN_OR_RETURN(estimate.pipeline, Pipeline(message));
    const int busiest = AddStageTimes(&estimate);
    estimate.bubble = free.makespan - StageSeconds(busiest).total();
    estimate.pp = estimate.pipeline.makespan - free.makespan;
    estimate.bubble_fraction = free.bubble_fraction;
    AddGradientsAndWeights(&estimate);
    estimate.optimizer = OptimizerSeconds();
    estimate.step = estimate.pipeline.makespan + estimate.gradients +
                    estimate.weights + estimate.optimizer;
    double flops = 0;
    for (size_t stage = 0; stage < costs_.stages.size(); ++stage) {
      const StageCosts& costs = costs_.stages[stage];
      flops += costs.step_model_flops / pp_;
      const double bytes = costs.total_bytes();
      if (bytes <= estimate.largest_bytes) continue;
      estimate.largest_bytes = bytes;
      estimate.largest_stage = static_cast<int>(stage);
    }
    estimate.utilization = flops / (estimate.step * machine_.device.gemm_flops);
    return estimate;
  }

 private:
  double LayerProducts(const PassCosts& pass) const {
    const DeviceModel& device = machine_.device;
    return pass.layer_flops / device.gemm_flops *
           (1 + device.half_hidden_size / costs_.hidden_size);
  }
  double PassCompute(const PassCosts& pass) const {
    const DeviceModel& device = machine_.device;
    return LayerProducts(pass) + pass.head_flops / device.gemm_flops +
           pass.num_kernels * device.kernel_s +
           pass.memory_bytes / device.memory_bandwidth;
  }
  // What a transfer adds to a computation of which it leaves `exposed` seconds
  // to be waited for.
  double Added(double transfer, double exposed) const {
    return exposed +
           machine_.device.hidden_transfer_cost * (transfer - exposed);
  }
  double TpSeconds(const PassCosts& pass) const {
    const bool wide = tp_ > 2 && tp_ <= machine_.ranks_per_node;
    return machine_.LinkOf(tp_).Seconds(
        wide ? pass.tp_bytes / machine_.wide_tp_speed : pass.tp_bytes,
        pass.tp_messages);
  }
  PassSeconds Forward(const PartCosts& part) const {
    const auto layers = static_cast<double>(part.num_layers);
    PassSeconds seconds;
    seconds.compute =
        PassCompute(part.forward) +
        layers * MixerForwardSeconds(costs_.mixer, machine_.device);
    seconds.tp = TpSeconds(part.forward);
    seconds.cp = layers * sequence_.forward_seconds;
    return seconds;
  }
  PassSeconds Backward(const PartCosts& part) const {
    const auto layers = static_cast<double>(part.num_layers);
    const double again = costs_.recomputes_mixers ? layers : 0;
    PassSeconds seconds;
    seconds.compute =
        PassCompute(part.backward) +
        layers * MixerBackwardSeconds(costs_.mixer, machine_.device) +
        again * MixerForwardSeconds(costs_.mixer, machine_.device);
    seconds.tp = TpSeconds(part.backward);
    seconds.cp =
        layers * sequence_.backward_seconds + again * sequence_.forward_seconds;
    return seconds;
  }

  // Of one micro-batch through all chunks of a stage.
  PassSeconds OfStage(const std::vector<PassSeconds>& parts, int stage) const {
    PassSeconds sum;
    for (int chunk = 0; chunk < plan_.num_chunks; ++chunk) {
      sum.Add(parts[plan_.PartOf(stage, chunk)]);
    }
    return sum;
  }
  // Of a step.
  PassSeconds StageSeconds(int stage) const {
    PassSeconds sum = OfStage(forward_, stage);
    sum.Add(OfStage(backward_, stage));
    const auto count = static_cast<double>(plan_.num_micro_batches);
    return {sum.compute * count, sum.tp * count, sum.cp * count};
  }

  // Sets what the busiest stage does; returns which.
  int AddStageTimes(StepEstimate* estimate) const {
    int busiest = 0;
    for (int stage = 1; stage < pp_; ++stage) {
      if (StageSeconds(stage).total() > StageSeconds(busiest).total()) {
        busiest = stage;
      }
    }
    const PassSeconds seconds = StageSeconds(busiest);
    estimate->compute = seconds.compute;
    estimate->tp = seconds.tp;
    estimate->cp = seconds.cp;
    return busiest;
  }

  absl::StatusOr<PipelineRun> Pipeline(double message) const {
    const PipelineShape shape = plan_.pipeline_shape();
    CUBIT_ASSIGN_OR_RETURN(const auto programs,
                           MakePipeline(plan_.schedule, shape));
    PipelineTimes times;
    for (size_t part = 0; part < forward_.size(); ++part) {
      times.part_forward.push_back(forward_[part].total());
      times.part_backward.push_back(backward_[part].total());
    }
    times.message = message;
    return SimulatePipeline(programs, shape, times, messages_);
  }

  // A stage that ends early, or begins late, has that much more time.
  void AddGradientsAndWeights(StepEstimate* estimate) const {
    const int replicas = dp_ * cp_;
    if (replicas == 1) return;
    const LinkModel& link = machine_.LinkOf(int64_t{tp_} * replicas);
    for (int stage = 0; stage < pp_; ++stage) {
      const StageCosts& costs = costs_.stages[static_cast<size_t>(stage)];
      const auto layers = static_cast<double>(costs.num_layers);
      const auto& timeline =
          estimate->pipeline.timeline[static_cast<size_t>(stage)];
      const auto seconds = [&](double bytes) {
        return link.Seconds(bytes,
                            (replicas - 1) * std::ceil(bytes / kBucketBytes));
      };
      const double sums = seconds(costs.gradient_bytes);
      const double late =
          Added(sums,
                Exposed(sums, OfStage(backward_, stage).total(), layers)) -
          (estimate->pipeline.makespan - timeline.back().end);
      estimate->gradients = std::max(estimate->gradients, late);
      const double weights =
          seconds(costs.weight_bytes) +
          costs.copy_bytes / machine_.device.memory_bandwidth;
      const double early =
          Added(weights,
                Exposed(weights, OfStage(forward_, stage).total(), layers)) -
          timeline.front().start;
      estimate->weights = std::max(estimate->weights, early);
    }
  }

  double OptimizerSeconds() const {
    double slowest = 0;
    for (const StageCosts& costs : costs_.stages) {
      const double bytes =
          costs.num_updated * (kUpdateBytes + kNormBytes) +
          static_cast<double>(costs.num_parameters) * kZeroBytes;
      slowest = std::max(slowest, bytes / machine_.device.memory_bandwidth);
    }
    // The norm of all gradients: one number from everyone, to everyone.
    const int world = plan_.mesh.world_size();
    const double hops = 2 * std::ceil(std::log2(static_cast<double>(world)));
    return slowest + machine_.LinkOf(world).Seconds(0, hops);
  }

  const ParallelPlan& plan_;
  const LayoutCosts& costs_;
  MachineModel machine_;
  const MessageMode messages_;
  const int tp_;
  const int cp_;
  const int dp_;
  const int pp_;
  SequenceCost sequence_;
  std::vector<PassSeconds> forward_;  // of every part
  std::vector<PassSeconds> backward_;
};

}  // namespace

std::string StepEstimate::ToString() const {
  std::string text =
      absl::StrFormat("%-20s %.4g ms, %.1f%% of the products' rate\n", "step",
                      1e3 * step, 100 * utilization);
  const auto line = [&](const char* name, double seconds) {
    if (seconds < 5e-4 * step) return;
    absl::StrAppendFormat(&text, "  %-18s %.4g ms (%.1f%%)\n", name,
                          1e3 * seconds, 100 * seconds / step);
  };
  line("computation", compute);
  line("tp, waiting", tp);
  line("cp, waiting", cp);
  line("pipeline bubble", bubble);
  line("pp messages", pp);
  line("gradients, waiting", gradients);
  line("weights, waiting", weights);
  line("optimizer", optimizer);
  absl::StrAppendFormat(&text, "%-20s %.3f GiB (stage %d), about\n",
                        "largest rank", largest_bytes / (1 << 30),
                        largest_stage);
  return text;
}

absl::StatusOr<StepEstimate> SimulateStep(const ParallelPlan& plan,
                                          const LayoutCosts& costs,
                                          const MachineModel& machine,
                                          MessageMode messages) {
  return StepModel(plan, costs, machine, messages).Run();
}

}  // namespace cubit
