// SPDX-License-Identifier: Apache-2.0

#include "launch/train_state.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

#include "parallel/replicas.h"
#include "runtime/check.h"
#include "runtime/profile_range.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

AdamWOptions OptimizerOptions(const RunConfig::Optimizer& config) {
  AdamWOptions options;
  options.beta1 = config.beta1();
  options.beta2 = config.beta2();
  options.epsilon = config.epsilon();
  options.weight_decay = config.weight_decay();
  options.grad_clip_norm = config.grad_clip_norm();
  return options;
}

// NaN is worse than any number, so it is not lost among them.
double Worse(double a, double b, bool larger_is_worse) {
  if (std::isnan(a) || std::isnan(b)) return a + b;
  return larger_is_worse ? std::max(a, b) : std::min(a, b);
}

MixerHealth WorstHealth(const float* rows, int64_t num_layers) {
  MixerHealth worst = {rows[0], rows[1], rows[2]};
  for (int64_t layer = 1; layer < num_layers; ++layer) {
    const float* row = rows + 3 * layer;
    worst.min_diagonal = Worse(worst.min_diagonal, row[0], false);
    worst.max_gain = Worse(worst.max_gain, row[1], true);
    worst.lambda_max = Worse(worst.lambda_max, row[2], true);
  }
  return worst;
}

// What the ranks agree on at the end of a step, by sum and by maximum. A NaN
// does not survive a maximum, so it is counted.
struct StepSums {
  double loss = 0;
  double health_nans = 0;
};
struct StepMaxima {
  double signal = 0;
  double minus_min_diagonal = 0;
  double max_gain = 0;
  double lambda_max = 0;
};

absl::Status Agree(Communicator& control, StepSums* sums, StepMaxima* maxima) {
  Stream host;
  const auto all = [](auto* values) {
    return Tensor(values, DType::kFloat64,
                  {static_cast<int64_t>(sizeof(*values) / sizeof(double))});
  };
  CUBIT_RETURN_IF_ERROR(
      control.AllReduce(all(sums), all(sums), ReduceOp::kSum, host));
  return control.AllReduce(all(maxima), all(maxima), ReduceOp::kMax, host);
}

void NothingToWatch(const PipelineAction&) {}

}  // namespace

TrainState::~TrainState() {
  if (mesh_ == nullptr) return;
  mesh_->gradient_lane().Drain();
  mesh_->sequence_lane().Drain();
}

absl::StatusOr<std::unique_ptr<TrainState>> TrainState::Create(
    const RunConfig& config, std::unique_ptr<LanguageModel> model) {
  std::unique_ptr<MeshCommunicators> single = MeshCommunicators::Single();
  const ParallelPlan layout = SinglePlan(config, model->config());
  CUBIT_ASSIGN_OR_RETURN(
      auto state, Create(config, layout, std::move(model), single.get()));
  state->single_ = std::move(single);
  return state;
}

absl::StatusOr<std::unique_ptr<TrainState>> TrainState::Create(
    const RunConfig& config, const ParallelPlan& layout,
    std::unique_ptr<LanguageModel> model, MeshCommunicators* mesh) {
  auto state = std::unique_ptr<TrainState>(new TrainState);
  state->model_ = std::move(model);
  state->mesh_ = mesh;
  CUBIT_RETURN_IF_ERROR(state->Allocate(config, layout));
  return state;
}

absl::Status TrainState::Allocate(const RunConfig& config,
                                  const ParallelPlan& layout) {
  CUBIT_RETURN_IF_ERROR(ConnectPipeline(mesh_->axis(MeshAxis::kPp), stream_));
  AlignParameters(config, layout, model_.get());
  const RunPlan plan = MakePlan(config, layout, mesh_->rank(), *model_);
  ParameterStore& parameters = model_->parameters();
  CUBIT_RETURN_IF_ERROR(parameters.Allocate(
      /*with_gradients=*/true, model_->config().activation_dtype));
  reducer_ = std::make_unique<GradientReducer>(ReducerOptions(config),
                                               &parameters, mesh_);
  CUBIT_RETURN_IF_ERROR(reducer_->Allocate());
  optimizer_ =
      std::make_unique<ShardedAdamW>(OptimizerOptions(config.optimizer()),
                                     &reducer_->layout(), &parameters, mesh_);
  CUBIT_RETURN_IF_ERROR(optimizer_->Allocate());
  actions_ = ActionsOf(layout, mesh_->rank());
  stage_ = std::make_unique<ModelStage>(
      model_.get(), StageShapeOf(config, model_->config(), layout), actions_);
  CUBIT_ASSIGN_OR_RETURN(
      Arena activations,
      Arena::Create(plan.memory[MemoryCategory::kActivations],
                    MemoryCategory::kActivations));
  Arena measure = Arena::Measuring();
  stage_->LayOutWorkspace(measure);
  CUBIT_ASSIGN_OR_RETURN(
      Arena workspace,
      Arena::Create(measure.used_bytes(), MemoryCategory::kWorkspace));
  activation_arena_ = std::make_unique<Arena>(std::move(activations));
  workspace_arena_ = std::make_unique<Arena>(std::move(workspace));
  stage_->LayOutActivations(*activation_arena_);
  stage_->LayOutWorkspace(*workspace_arena_);

  if (mesh_->size(MeshAxis::kTp) > 1)
    parallel_.tp = &mesh_->axis(MeshAxis::kTp);
  if (mesh_->size(MeshAxis::kCp) > 1) {
    parallel_.cp = &mesh_->axis(MeshAxis::kCp);
    parallel_.cp_lane = &mesh_->sequence_lane();
    parallel_.observer = &observer_;
  }
  counts_losses_ = model_->shard().head && model_->shard().tp_rank == 0;
  CUBIT_RETURN_IF_ERROR(stage_->Prepare(&stream_, &parallel_));
  CUBIT_ASSIGN_OR_RETURN(
      downloads_, PinnedBuffer::Allocate(static_cast<int64_t>(sizeof(double)) +
                                         stage_->step_losses().size_bytes() +
                                         stage_->health().size_bytes()));
  return absl::OkStatus();
}

absl::StatusOr<int64_t> TrainState::SumOverDp(int64_t local) {
  Stream host;
  int64_t sum = local;
  const Tensor all(&sum, DType::kInt64, {1});
  CUBIT_RETURN_IF_ERROR(
      mesh_->control().AllReduce(all, all, ReduceOp::kSum, host));
  // Every rank of a dp coordinate has told the same.
  return sum / (mesh_->mesh().world_size() / mesh_->size(MeshAxis::kDp));
}

void TrainState::BeginStep() {
  const ProfileRange range("zero gradients", stream_);
  model_->parameters().ZeroGradients(stream_);
}

absl::Status TrainState::ForwardBackward(const std::vector<Batch>& batches,
                                         float grad_scale) {
  return ForwardBackward(batches, grad_scale, NothingToWatch);
}

absl::Status TrainState::ForwardBackward(
    const std::vector<Batch>& batches, float grad_scale,
    absl::FunctionRef<void(const PipelineAction&)> watch) {
  stage_->BeginStep(
      &batches, grad_scale,
      [this](size_t first, size_t last) {
        reducer_->Ready(first, last, stream_);
      },
      [this](size_t first, size_t last) {
        optimizer_->WaitForWeights(first, last, stream_);
      });
  CUBIT_RETURN_IF_ERROR(RunPipeline(
      actions_, stage_.get(), mesh_->axis(MeshAxis::kPp), stream_, watch));
  CUBIT_RETURN_IF_ERROR(parallel_.status);
  return reducer_->Finish(stream_);
}

absl::Status TrainState::Update(int64_t step, double learning_rate) {
  CUBIT_RETURN_IF_ERROR(optimizer_->ComputeGradientNorm(stream_));
  optimizer_->Update(step, learning_rate, stream_);
  return absl::OkStatus();
}

absl::StatusOr<StepOutcome> TrainState::FinishStep(int signal) {
  const Tensor& step_losses = stage_->step_losses();
  const Tensor& step_health = stage_->health();
  auto* norm = static_cast<double*>(downloads_.data());
  auto* losses = reinterpret_cast<float*>(norm + 1);
  float* health = losses;
  CopyToHost(norm, optimizer_->squared_norm().raw(), sizeof(double), stream_);
  if (counts_losses_) {
    CopyToHost(losses, step_losses.raw(), step_losses.size_bytes(), stream_);
    health += step_losses.num_elements();
  }
  if (!step_health.empty()) {
    CopyToHost(health, step_health.raw(), step_health.size_bytes(), stream_);
  }
  stream_.Synchronize();
  StepSums sums;
  StepMaxima maxima;
  if (counts_losses_) {
    const int64_t rows = step_losses.dim(1);
    for (int64_t batch = 0; batch < step_losses.dim(0); ++batch) {
      double sum = 0;
      for (int64_t row = 0; row < rows; ++row) {
        sum += losses[batch * rows + row];
      }
      sums.loss += sum;
    }
  }
  if (!step_health.empty()) {
    const MixerHealth worst = WorstHealth(health, step_health.dim(0));
    sums.health_nans = std::isnan(worst.min_diagonal) +
                       std::isnan(worst.max_gain) +
                       std::isnan(worst.lambda_max);
    maxima.minus_min_diagonal = -worst.min_diagonal;
    maxima.max_gain = worst.max_gain;
    maxima.lambda_max = worst.lambda_max;
  }
  maxima.signal = signal;
  CUBIT_RETURN_IF_ERROR(Agree(mesh_->control(), &sums, &maxima));
  StepOutcome outcome;
  outcome.grad_norm = std::sqrt(*norm);
  outcome.loss = sums.loss;
  outcome.signal = static_cast<int>(maxima.signal);
  if (!step_health.empty()) {
    outcome.health = MixerHealth{-maxima.minus_min_diagonal, maxima.max_gain,
                                 maxima.lambda_max};
    if (sums.health_nans > 0) {
      constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
      outcome.health = MixerHealth{kNan, kNan, kNan};
    }
  }
  return outcome;
}

absl::Status TrainState::CompareReplicas() {
  CUBIT_RETURN_IF_ERROR(optimizer_->WaitForAllWeights(stream_));
  return CheckReplicas(model_->parameters(), *mesh_, stream_);
}

absl::StatusOr<LocalLosses> TrainState::Forward(const Batch& batch) {
  CUBIT_RETURN_IF_ERROR(optimizer_->WaitForAllWeights(stream_));
  CUBIT_RETURN_IF_ERROR(stage_->Evaluate(batch, mesh_->axis(MeshAxis::kPp)));
  LocalLosses result;
  if (!counts_losses_) {
    stream_.Synchronize();
    return result;
  }
  const Tensor& device = stage_->losses_of_evaluation();
  auto* host = static_cast<float*>(downloads_.data());
  CopyToHost(host, device.raw(), device.size_bytes(), stream_);
  stream_.Synchronize();
  result.losses.assign(host, host + device.num_elements());
  result.rows = stage_->RowsOfBatch();
  return result;
}

std::vector<CheckpointTensor> ModelTensors(LanguageModel& model) {
  std::vector<CheckpointTensor> tensors;
  for (const Parameter& parameter : model.parameters().parameters()) {
    tensors.push_back({absl::StrCat("model.", parameter.name), parameter.shard,
                       parameter.value});
  }
  return tensors;
}

absl::StatusOr<SavedState> TrainState::GatherState() {
  CUBIT_RETURN_IF_ERROR(optimizer_->WaitForAllWeights(stream_));
  SavedState state;
  state.tensors = ModelTensors(*model_);
  size_t index = 0;
  for (const Parameter& parameter : model_->parameters().parameters()) {
    state.tensors[index++].owner = SavesParameter(parameter, *mesh_);
  }
  CUBIT_ASSIGN_OR_RETURN(state.moments, optimizer_->GatherState(stream_));
  const auto& moments = state.moments.tensors;
  state.tensors.insert(state.tensors.end(), moments.begin(), moments.end());
  return state;
}

std::vector<CheckpointTensor> TrainState::StateToLoad() {
  std::vector<CheckpointTensor> tensors = ModelTensors(*model_);
  const std::vector<CheckpointTensor> moments = optimizer_->StateToLoad();
  tensors.insert(tensors.end(), moments.begin(), moments.end());
  return tensors;
}

std::string TrainState::FirstBadGradient() {
  // Not a hot path: runs once a gradient norm is not finite.
  std::vector<float> host;
  for (const Parameter& parameter : model_->parameters().parameters()) {
    host.resize(static_cast<size_t>(parameter.gradient.num_elements()));
    CopyToHost(host.data(), parameter.gradient.raw(),
               parameter.gradient.size_bytes(), stream_);
    stream_.Synchronize();
    for (float value : host) {
      if (!std::isfinite(value)) return parameter.name;
    }
  }
  return "";
}

}  // namespace cubit
