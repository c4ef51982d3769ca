// SPDX-License-Identifier: Apache-2.0

#include "parallel/adamw_optimizer.h"

#include <cmath>

#include "absl/strings/str_cat.h"

#include "ops/adamw.h"
#include "ops/elementwise.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kNormBytes = 256;  // one fp64, aligned

}  // namespace

AdamWOptimizer::AdamWOptimizer(const AdamWOptions& options,
                               ParameterStore* store)
    : options_(options), store_(store) {}

int64_t AdamWOptimizer::StateBytes(const ParameterStore& store) {
  return 2 * store.buffer_bytes() + kNormBytes;
}

absl::Status AdamWOptimizer::Allocate() {
  const int64_t bytes = store_->buffer_bytes();
  CUBIT_ASSIGN_OR_RETURN(buffer_, Buffer::Allocate(StateBytes(*store_),
                                                   MemoryCategory::kOptimizer));
  char* base = static_cast<char*>(buffer_.data());
  norm_ = Tensor(base, DType::kFloat64, {1});
  m_ =
      Tensor(base + kNormBytes, DType::kFloat32, store_->flat_values().shape());
  v_ = Tensor(base + kNormBytes + bytes, DType::kFloat32, m_.shape());
  return absl::OkStatus();
}

double AdamWOptimizer::GradientNorm(Stream& stream) {
  SumOfSquares(store_->flat_gradients(), norm_, stream);
  double sum = 0;
  CopyToHost(&sum, norm_.raw(), sizeof(sum), stream);
  stream.Synchronize();
  return std::sqrt(sum);
}

void AdamWOptimizer::Update(int64_t step, double learning_rate, double norm,
                            Stream& stream) {
  CUBIT_CHECK(std::isfinite(norm));
  AdamWStep update;
  update.learning_rate = static_cast<float>(learning_rate);
  update.beta1 = static_cast<float>(options_.beta1);
  update.beta2 = static_cast<float>(options_.beta2);
  update.epsilon = static_cast<float>(options_.epsilon);
  update.step = step;
  if (options_.grad_clip_norm > 0 && norm > options_.grad_clip_norm) {
    update.grad_scale = static_cast<float>(options_.grad_clip_norm / norm);
  }
  for (Parameter& parameter : store_->parameters()) {
    const int64_t count = parameter.value.num_elements();
    update.weight_decay =
        parameter.decay ? static_cast<float>(options_.weight_decay) : 0.0f;
    AdamWUpdate(update, parameter.gradient.Reshape({count}),
                m_.Slice(parameter.offset, count),
                v_.Slice(parameter.offset, count),
                parameter.value.Reshape({count}), stream);
  }
}

std::vector<CheckpointTensor> AdamWOptimizer::State() {
  std::vector<CheckpointTensor> tensors;
  for (const Parameter& parameter : store_->parameters()) {
    const int64_t count = parameter.value.num_elements();
    const auto add = [&](const char* prefix, const Tensor& flat) {
      tensors.push_back({absl::StrCat(prefix, parameter.name), parameter.shard,
                         flat.Slice(parameter.offset, count)
                             .Reshape(parameter.value.shape())});
    };
    add("adamw.m.", m_);
    add("adamw.v.", v_);
  }
  return tensors;
}

}  // namespace cubit
