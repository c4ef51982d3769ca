// SPDX-License-Identifier: Apache-2.0

#include "launch/train_state.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

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

}  // namespace

RunPlan MakePlan(const RunConfig& config, const LanguageModel& model) {
  const RunConfig::Batch& batch = config.batch();
  const int64_t seq_len = model.config().seq_len;
  RunPlan plan;
  plan.num_parameters = model.parameters().num_elements();
  plan.num_micro_batches = batch.global_batch_size() / batch.micro_batch_size();
  plan.step_tokens = batch.global_batch_size() * seq_len;
  plan.step_flops = model.TrainFlops(batch.global_batch_size(), seq_len);
  plan.memory[MemoryCategory::kParameters] = model.parameters().buffer_bytes();
  plan.memory[MemoryCategory::kGradients] = model.parameters().buffer_bytes();
  plan.memory[MemoryCategory::kOptimizer] =
      AdamWOptimizer::StateBytes(model.parameters());
  Arena activations = Arena::Measuring();
  model.AllocateActivations(batch.micro_batch_size(), seq_len, activations);
  plan.memory[MemoryCategory::kActivations] = activations.used_bytes();
  Arena workspace = Arena::Measuring();
  model.AllocateScratch(batch.micro_batch_size(), seq_len, workspace);
  plan.memory[MemoryCategory::kWorkspace] = workspace.used_bytes();
  return plan;
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
  absl::StrAppend(&text,
                  absl::StrFormat("%-16s %d bytes (%s)\n", "memory total",
                                  memory.total(), HumanBytes(memory.total())));
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
  CUBIT_RETURN_IF_ERROR(parameters.Allocate(/*with_gradients=*/true));
  state->optimizer_ = std::make_unique<AdamWOptimizer>(
      OptimizerOptions(config.optimizer()), &parameters);
  CUBIT_RETURN_IF_ERROR(state->optimizer_->Allocate());
  CUBIT_ASSIGN_OR_RETURN(
      Arena activations,
      Arena::Create(plan.memory[MemoryCategory::kActivations],
                    MemoryCategory::kActivations));
  CUBIT_ASSIGN_OR_RETURN(Arena workspace,
                         Arena::Create(plan.memory[MemoryCategory::kWorkspace],
                                       MemoryCategory::kWorkspace));
  state->activation_arena_ = std::make_unique<Arena>(std::move(activations));
  state->workspace_arena_ = std::make_unique<Arena>(std::move(workspace));
  state->activations_ = state->model_->AllocateActivations(
      batch, seq_len, *state->activation_arena_);
  state->scratch_ =
      state->model_->AllocateScratch(batch, seq_len, *state->workspace_arena_);
  state->model_->InitializeScratch(&state->scratch_, state->stream_);
  state->host_losses_.resize(static_cast<size_t>(batch * seq_len));
  return state;
}

void TrainState::ZeroGradients() {
  const Tensor gradients = model_->parameters().flat_gradients();
  SetZero(gradients.raw(), gradients.size_bytes(), stream_);
}

void TrainState::Upload(const Batch& batch) {
  const auto copy = [&](const std::vector<int32_t>& ids, const Tensor& tensor) {
    CUBIT_CHECK_EQ(static_cast<int64_t>(ids.size()), tensor.num_elements());
    CopyToDevice(tensor.raw(), ids.data(), tensor.size_bytes(), stream_);
  };
  copy(batch.inputs, activations_.inputs);
  copy(batch.targets, activations_.targets);
  if (!activations_.segment_ids.empty()) {
    copy(batch.segment_ids, activations_.segment_ids);
  }
}

LossSum TrainState::ReadLosses(const Batch& batch, std::vector<float>* losses) {
  CopyToHost(host_losses_.data(), activations_.losses.raw(),
             activations_.losses.size_bytes(), stream_);
  stream_.Synchronize();
  LossSum sum;
  for (float loss : host_losses_) sum.loss += loss;
  sum.tokens = batch.valid_tokens;
  if (losses != nullptr) *losses = host_losses_;
  return sum;
}

LossSum TrainState::ForwardBackward(const Batch& batch, float grad_scale) {
  Upload(batch);
  model_->ForwardBackward(grad_scale, &activations_, &scratch_, stream_);
  return ReadLosses(batch, nullptr);
}

LossSum TrainState::Forward(const Batch& batch, std::vector<float>* losses) {
  Upload(batch);
  model_->Forward(&activations_, &scratch_, stream_);
  return ReadLosses(batch, losses);
}

MixerHealth TrainState::Health() {
  return model_->Health(activations_, scratch_, stream_);
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
