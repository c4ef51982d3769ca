// SPDX-License-Identifier: Apache-2.0

#include "launch/train_state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "models/recompute.h"
#include "ops/workspace.h"
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

std::string HumanBytes(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 1024 ? absl::StrFormat("%.1f MiB", mib)
                    : absl::StrFormat("%.2f GiB", mib / 1024);
}

Recompute RecomputeFrom(const RunConfig::Memory& memory) {
  switch (memory.recompute()) {
    case RunConfig::Recompute::none:
      return Recompute::kNone;
    case RunConfig::Recompute::selective:
      return Recompute::kSelective;
    case RunConfig::Recompute::full:
      return Recompute::kFull;
  }
  return Recompute::kNone;
}

// What lies in the arena of activations.
struct StepTensors {
  Activations activations;
  Tensor losses;
  Tensor health;
};

StepTensors LayOut(const RunConfig& config, const LanguageModel& model,
                   Arena& arena) {
  const RunConfig::Batch& batch = config.batch();
  const int64_t micro_batch = batch.micro_batch_size();
  const int64_t seq_len = model.config().seq_len;
  StepTensors tensors;
  tensors.activations = model.AllocateActivations(
      micro_batch, seq_len, arena, RecomputeFrom(config.memory()));
  tensors.losses = arena.Allocate(
      DType::kFloat32,
      {batch.global_batch_size() / micro_batch, micro_batch * seq_len});
  if (model.has_health()) {
    tensors.health =
        arena.Allocate(DType::kFloat32, {model.config().num_layers, 3});
  }
  return tensors;
}

int64_t OpsBytes(const RunConfig& config, const LanguageModel& model) {
  const ModelConfig& sizes = model.config();
  WorkspaceQuery query;
  query.batch = config.batch().micro_batch_size();
  query.seq_len = sizes.seq_len;
  query.num_heads = sizes.num_heads;
  query.head_dim = sizes.head_dim();
  query.hidden_size = sizes.hidden_size;
  query.ffn_hidden_size = sizes.ffn_hidden_size;
  query.vocab_size = sizes.vocab_size;
  query.num_elements =
      model.parameters().buffer_bytes() / SizeOf(DType::kFloat32);
  query.dtype = sizes.activation_dtype;
  return OpsWorkspaceBytes(query);
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

}  // namespace

RunPlan MakePlan(const RunConfig& config, const LanguageModel& model) {
  const RunConfig::Batch& batch = config.batch();
  const int64_t seq_len = model.config().seq_len;
  const ParameterStore& parameters = model.parameters();
  RunPlan plan;
  plan.num_parameters = parameters.num_elements();
  plan.num_micro_batches = batch.global_batch_size() / batch.micro_batch_size();
  plan.step_tokens = batch.global_batch_size() * seq_len;
  plan.step_flops = model.TrainFlops(batch.global_batch_size(), seq_len);
  plan.memory[MemoryCategory::kParameters] =
      parameters.buffer_bytes() +
      parameters.compute_bytes(model.config().activation_dtype);
  plan.memory[MemoryCategory::kGradients] = parameters.buffer_bytes();
  plan.memory[MemoryCategory::kOptimizer] =
      AdamWOptimizer::StateBytes(parameters);
  Arena activations = Arena::Measuring();
  LayOut(config, model, activations);
  plan.memory[MemoryCategory::kActivations] = activations.used_bytes();
  Arena workspace = Arena::Measuring();
  model.AllocateScratch(batch.micro_batch_size(), seq_len, workspace);
  plan.memory[MemoryCategory::kWorkspace] =
      workspace.used_bytes() + OpsBytes(config, model);
  plan.process_bytes = ProcessDeviceBytes();
  return plan;
}

int64_t LargestMicroBatch(const RunConfig& config, const LanguageModel& model,
                          int64_t memory_bytes) {
  const int64_t global = config.batch().global_batch_size();
  for (int64_t size = global; size >= 1; --size) {
    if (global % size != 0) continue;
    RunConfig candidate = config;
    candidate.mutable_batch()->set_micro_batch_size(size);
    if (MakePlan(candidate, model).total_bytes() <= memory_bytes) return size;
  }
  return 0;
}

absl::Status CheckFits(const RunConfig& config, const LanguageModel& model,
                       const RunPlan& plan, int64_t memory_bytes) {
  if (memory_bytes == 0 || plan.total_bytes() <= memory_bytes) {
    return absl::OkStatus();
  }
  RunConfig thrifty = config;
  const std::string what =
      absl::StrFormat("the run needs %s of memory and the device has %s",
                      HumanBytes(plan.total_bytes()), HumanBytes(memory_bytes));
  for (const auto policy :
       {config.memory().recompute(), RunConfig::Recompute::selective,
        RunConfig::Recompute::full}) {
    if (policy < config.memory().recompute()) continue;
    thrifty.mutable_memory()->set_recompute(policy);
    const int64_t fitting = LargestMicroBatch(thrifty, model, memory_bytes);
    if (fitting == 0) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        what, "; this fits: --set batch.micro_batch_size=", fitting,
        policy == config.memory().recompute()
            ? ""
            : absl::StrCat(" --set memory.recompute=",
                           RunConfig::Recompute::Word_Name(policy))));
  }
  return absl::FailedPreconditionError(absl::StrCat(
      what,
      "; with micro-batches of 1 sequence and memory.recompute=full it "
      "does not fit either: use a smaller model or model.seq_len"));
}

std::string RunPlan::ToString() const {
  std::string text =
      absl::StrFormat("%-16s %d\n", "parameters", num_parameters);
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    if (memory[category] == 0) continue;
    absl::StrAppend(
        &text, absl::StrFormat("%-16s %d bytes (%s)\n",
                               absl::StrCat("memory ", Name(category)),
                               memory[category], HumanBytes(memory[category])));
  }
  if (process_bytes > 0) {
    absl::StrAppend(
        &text, absl::StrFormat("%-16s %d bytes (%s), about\n", "memory process",
                               process_bytes, HumanBytes(process_bytes)));
  }
  absl::StrAppend(&text,
                  absl::StrFormat("%-16s %d bytes (%s)\n", "memory total",
                                  total_bytes(), HumanBytes(total_bytes())));
  absl::StrAppend(
      &text,
      absl::StrFormat("%-16s %d tokens, %d micro-batches, %.6g "
                      "FLOPs\n",
                      "one step", step_tokens, num_micro_batches, step_flops));
  return text;
}

absl::StatusOr<std::unique_ptr<TrainState>> TrainState::Create(
    const RunConfig& config, std::unique_ptr<LanguageModel> model) {
  auto state = std::unique_ptr<TrainState>(new TrainState);
  state->model_ = std::move(model);
  const RunPlan plan = MakePlan(config, *state->model_);
  const int64_t batch = config.batch().micro_batch_size();
  const int64_t seq_len = state->model_->config().seq_len;
  ParameterStore& parameters = state->model_->parameters();
  CUBIT_RETURN_IF_ERROR(parameters.Allocate(
      /*with_gradients=*/true, state->model_->config().activation_dtype));
  state->optimizer_ = std::make_unique<AdamWOptimizer>(
      OptimizerOptions(config.optimizer()), &parameters);
  CUBIT_RETURN_IF_ERROR(state->optimizer_->Allocate());
  CUBIT_ASSIGN_OR_RETURN(
      Arena activations,
      Arena::Create(plan.memory[MemoryCategory::kActivations],
                    MemoryCategory::kActivations));
  CUBIT_ASSIGN_OR_RETURN(Arena workspace,
                         Arena::Create(plan.memory[MemoryCategory::kWorkspace] -
                                           OpsBytes(config, *state->model_),
                                       MemoryCategory::kWorkspace));
  state->activation_arena_ = std::make_unique<Arena>(std::move(activations));
  state->workspace_arena_ = std::make_unique<Arena>(std::move(workspace));
  StepTensors tensors =
      LayOut(config, *state->model_, *state->activation_arena_);
  state->activations_ = std::move(tensors.activations);
  state->step_losses_ = tensors.losses;
  state->health_ = tensors.health;
  state->scratch_ =
      state->model_->AllocateScratch(batch, seq_len, *state->workspace_arena_);
  state->model_->InitializeScratch(&state->scratch_, state->stream_);
  state->num_micro_batches_ = plan.num_micro_batches;
  const int64_t ids = 3 * batch * seq_len * SizeOf(DType::kInt32);
  CUBIT_ASSIGN_OR_RETURN(state->uploads_,
                         PinnedBuffer::Allocate(plan.num_micro_batches * ids));
  CUBIT_ASSIGN_OR_RETURN(
      state->downloads_,
      PinnedBuffer::Allocate(static_cast<int64_t>(sizeof(double)) +
                             tensors.losses.size_bytes() +
                             tensors.health.size_bytes()));
  return state;
}

void TrainState::BeginStep() {
  uploads_done_.Synchronize();  // their memory is used again
  micro_batch_ = 0;
  const ProfileRange range("zero gradients", stream_);
  const Tensor gradients = model_->parameters().flat_gradients();
  SetZero(gradients.raw(), gradients.size_bytes(), stream_);
}

void TrainState::Upload(const Batch& batch) {
  CUBIT_CHECK_LT(micro_batch_, num_micro_batches_);
  const ProfileRange range("upload", stream_);
  const int64_t bytes = activations_.inputs.size_bytes();
  char* pinned = static_cast<char*>(uploads_.data()) + 3 * bytes * micro_batch_;
  const auto copy = [&](const std::vector<int32_t>& ids, const Tensor& tensor) {
    CUBIT_CHECK_EQ(static_cast<int64_t>(ids.size()), tensor.num_elements());
    std::memcpy(pinned, ids.data(), static_cast<size_t>(bytes));
    CopyToDevice(tensor.raw(), pinned, bytes, stream_);
    pinned += bytes;
  };
  copy(batch.inputs, activations_.inputs);
  copy(batch.targets, activations_.targets);
  if (!activations_.segment_ids.empty()) {
    copy(batch.segment_ids, activations_.segment_ids);
  }
  uploads_done_.Record(stream_);
}

void TrainState::ForwardBackward(const Batch& batch, float grad_scale) {
  Upload(batch);
  const bool last = micro_batch_ + 1 == num_micro_batches_;
  model_->ForwardBackward(grad_scale, &activations_, &scratch_, stream_,
                          last ? health_ : Tensor());
  const Tensor losses = step_losses_.Slice(micro_batch_, 1);
  CopyOnDevice(losses.raw(), activations_.losses.raw(), losses.size_bytes(),
               stream_);
  ++micro_batch_;
}

void TrainState::Update(int64_t step, double learning_rate) {
  optimizer_->ComputeGradientNorm(stream_);
  optimizer_->Update(step, learning_rate, stream_);
}

StepOutcome TrainState::FinishStep() {
  CUBIT_CHECK_EQ(micro_batch_, num_micro_batches_);
  auto* norm = static_cast<double*>(downloads_.data());
  auto* losses = reinterpret_cast<float*>(norm + 1);
  float* health = losses + step_losses_.num_elements();
  CopyToHost(norm, optimizer_->squared_norm().raw(), sizeof(double), stream_);
  CopyToHost(losses, step_losses_.raw(), step_losses_.size_bytes(), stream_);
  if (!health_.empty()) {
    CopyToHost(health, health_.raw(), health_.size_bytes(), stream_);
  }
  stream_.Synchronize();
  StepOutcome outcome;
  outcome.grad_norm = std::sqrt(*norm);
  const int64_t rows = step_losses_.dim(1);
  for (int64_t batch = 0; batch < num_micro_batches_; ++batch) {
    double sum = 0;
    for (int64_t row = 0; row < rows; ++row) sum += losses[batch * rows + row];
    outcome.loss += sum;
  }
  if (!health_.empty()) {
    outcome.health = WorstHealth(health, health_.dim(0));
  }
  return outcome;
}

LossSum TrainState::Forward(const Batch& batch, std::vector<float>* losses) {
  micro_batch_ = 0;
  Upload(batch);
  model_->Forward(&activations_, &scratch_, stream_);
  const Tensor& device = activations_.losses;
  auto* host = static_cast<float*>(downloads_.data());
  CopyToHost(host, device.raw(), device.size_bytes(), stream_);
  stream_.Synchronize();
  LossSum sum;
  for (int64_t n = 0; n < device.num_elements(); ++n) sum.loss += host[n];
  sum.tokens = batch.valid_tokens;
  if (losses != nullptr) losses->assign(host, host + device.num_elements());
  return sum;
}

std::vector<CheckpointTensor> ModelTensors(LanguageModel& model) {
  std::vector<CheckpointTensor> tensors;
  for (const Parameter& parameter : model.parameters().parameters()) {
    tensors.push_back({absl::StrCat("model.", parameter.name), parameter.shard,
                       parameter.value});
  }
  return tensors;
}

std::vector<CheckpointTensor> TrainState::Tensors(bool optimizer_state) {
  std::vector<CheckpointTensor> tensors = ModelTensors(*model_);
  if (optimizer_state) {
    std::vector<CheckpointTensor> moments = optimizer_->State();
    tensors.insert(tensors.end(), moments.begin(), moments.end());
  }
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
