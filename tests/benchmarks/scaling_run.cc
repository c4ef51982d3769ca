// SPDX-License-Identifier: Apache-2.0

#include "tests/benchmarks/scaling_run.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "launch/layout_report.h"
#include "launch/model_setup.h"
#include "launch/profile_event.h"
#include "launch/run_plan.h"
#include "launch/train_state.h"
#include "ops/matmul.h"
#include "parallel/agreement.h"
#include "parallel/parameter.h"
#include "runtime/device.h"
#include "runtime/profile_range.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Of a stage, where the layout does not say: its bubble is at most a fifth.
constexpr int64_t kMicroBatchesPerStage = 4;
constexpr double kLearningRate = 1e-4;

absl::Status SetMicroBatches(const ScalingLayout& layout, RunConfig* config) {
  const int64_t local = config->batch().global_batch_size() / layout.dp;
  int64_t count = layout.num_micro_batches;
  if (count == 0 && layout.pp > 1) count = kMicroBatchesPerStage * layout.pp;
  if (count == 0) count = local;
  if (local == 0 || local % count != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(count, " micro-batches do not divide the ", local,
                     " sequences of a dp rank"));
  }
  config->mutable_batch()->set_micro_batch_size(local / count);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LanguageModel>> ModelOf(const PlannedRun& run,
                                                       int rank) {
  CUBIT_ASSIGN_OR_RETURN(
      auto model, LanguageModel::Create(run.model, run.plan.ShardOf(rank)));
  AlignParameters(run.config, run.plan, model.get());
  return model;
}

// The largest micro-batch that every rank has room for.
absl::Status FitMicroBatch(int64_t memory_bytes, PlannedRun* run) {
  int64_t size = run->config.batch().global_batch_size();
  for (const int rank : DistinctRanks(run->plan)) {
    CUBIT_ASSIGN_OR_RETURN(const auto model, ModelOf(*run, rank));
    size = std::min(size, LargestMicroBatch(run->config, run->plan, rank,
                                            *model, memory_bytes));
  }
  if (size == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no micro-batch fits into ", memory_bytes, " bytes"));
  }
  run->config.mutable_batch()->set_micro_batch_size(size);
  return absl::OkStatus();
}

class Steps {
 public:
  Steps(const PlannedRun& run, TrainState* state) : state_(state) {
    const int64_t size = run.config.batch().micro_batch_size();
    const int64_t dp = run.plan.mesh.size(MeshAxis::kDp);
    const int64_t dp_rank = state->mesh().coordinate().dp;
    for (int64_t m = 0; m < run.plan.num_micro_batches; ++m) {
      batches_.push_back(
          RandomBatch(run.model, (m * dp + dp_rank) * size, size));
    }
    tokens_ = static_cast<double>(run.config.batch().global_batch_size() *
                                  run.model.seq_len);
  }

  // Returns the loss.
  absl::StatusOr<double> Run() {
    state_->BeginStep();
    CUBIT_RETURN_IF_ERROR(
        state_->ForwardBackward(batches_, static_cast<float>(1.0 / tokens_)));
    CUBIT_RETURN_IF_ERROR(state_->Update(++step_, kLearningRate));
    CUBIT_ASSIGN_OR_RETURN(const StepOutcome outcome, state_->FinishStep());
    return outcome.loss / tokens_;
  }

 private:
  TrainState* state_;
  std::vector<Batch> batches_;
  double tokens_ = 1;
  int64_t step_ = 0;
};

// Seconds since `*start`, which becomes now.
double Lap(absl::Time* start) {
  const absl::Time now = absl::Now();
  return absl::ToDoubleSeconds(now - std::exchange(*start, now));
}

absl::StatusOr<std::unique_ptr<TrainState>> MakeState(const PlannedRun& run,
                                                      MeshCommunicators* mesh,
                                                      SetupSeconds* seconds) {
  absl::Time start = absl::Now();
  CUBIT_ASSIGN_OR_RETURN(auto model, ModelOf(run, mesh->rank()));
  auto state = TrainState::Create(run.config, run.plan, std::move(model), mesh);
  // Whoever has no room, all give up.
  CUBIT_RETURN_IF_ERROR(Agree(&mesh->control(), state.status()));
  seconds->memory = Lap(&start);
  ParameterStore& parameters = (*state)->model().parameters();
  CUBIT_RETURN_IF_ERROR(
      parameters.Initialize(run.config.seed(), (*state)->stream()));
  (*state)->stream().Synchronize();
  seconds->weights = Lap(&start);
  return state;
}

absl::Status Profile(int num_steps, TrainState* state, Steps* steps,
                     Measurement* result) {
  if (num_steps == 0) return absl::OkStatus();
  StepProfile profile(&state->stream());
  state->stream().set_profile(&profile);
  for (int i = 0; i < num_steps; ++i) {
    profile.Begin();
    CUBIT_RETURN_IF_ERROR(steps->Run().status());
    profile.End();
  }
  state->stream().set_profile(nullptr);
  CUBIT_ASSIGN_OR_RETURN(
      const EventMetrics event,
      GatherProfiles(profile, num_steps, &state->mesh().control()));
  result->profiles = ProfilesOfRanks(event);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PlannedRun> PlanRun(const RunSpec& run,
                                   const ScalingLayout& layout,
                                   const std::vector<std::string>& overrides,
                                   int64_t memory_bytes) {
  RunSpec all = run;
  all.tokens *= layout.world_size();
  std::vector<std::string> assignments = overrides;
  assignments.insert(assignments.end(), layout.overrides.begin(),
                     layout.overrides.end());
  CUBIT_ASSIGN_OR_RETURN(RunConfig config, ConfigOf(all, assignments));
  RunConfig::Parallel* parallel = config.mutable_parallel();
  const bool gpu = DeviceKind() == "cuda";
  parallel->set_nodes(gpu ? 1 : layout.world_size());
  parallel->set_gpus_per_node(gpu ? layout.world_size() : 0);
  CUBIT_RETURN_IF_ERROR(SetMicroBatches(layout, &config));
  CUBIT_ASSIGN_OR_RETURN(const ModelConfig model,
                         MakeModelConfig(config, kGpt2Vocabulary));
  CUBIT_ASSIGN_OR_RETURN(
      const ParallelPlan plan,
      MakeParallelPlan(config, model, layout.world_size(), DeviceKind()));
  PlannedRun planned = {config, model, plan};
  if (layout.num_micro_batches == 0 && layout.pp == 1) {
    CUBIT_RETURN_IF_ERROR(FitMicroBatch(memory_bytes, &planned));
    CUBIT_ASSIGN_OR_RETURN(planned.plan,
                           MakeParallelPlan(planned.config, model,
                                            layout.world_size(), DeviceKind()));
  }
  for (const int rank : DistinctRanks(planned.plan)) {
    CUBIT_ASSIGN_OR_RETURN(const auto of_rank, ModelOf(planned, rank));
    planned.memory_bytes = std::max(
        planned.memory_bytes,
        MakePlan(planned.config, planned.plan, rank, *of_rank).total_bytes());
  }
  return planned;
}

absl::StatusOr<Measurement> MeasureRun(const PlannedRun& run,
                                       const StepCounts& counts,
                                       MeshCommunicators* mesh) {
  Measurement result;
  CUBIT_ASSIGN_OR_RETURN(const auto state, MakeState(run, mesh, &result.setup));
  Steps steps(run, state.get());
  absl::Time start = absl::Now();
  std::vector<double> warmups;
  for (int i = 0; i < counts.warmup; ++i) {
    // As in a long run.
    if (i == counts.warmup / 2) ChooseProductsUnderLoad();
    CUBIT_ASSIGN_OR_RETURN(const double loss, steps.Run());
    warmups.push_back(Lap(&start));
    result.losses.push_back(loss);
  }
  std::vector<double> seconds;
  for (int i = 0; i < counts.timed; ++i) {
    CUBIT_RETURN_IF_ERROR(steps.Run().status());
    seconds.push_back(Lap(&start));
  }
  if (!seconds.empty()) result.step_seconds = Median(seconds);
  if (warmups.size() > 1) {
    result.setup.first_step = std::max(0.0, warmups.front() - warmups.back());
  }
  CUBIT_RETURN_IF_ERROR(Profile(counts.profiled, state.get(), &steps, &result));
  return result;
}

}  // namespace cubit
